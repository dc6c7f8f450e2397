"""Opening datasets: splits, folders, JSON documents, streams, and errors that say what to do."""

import gzip
import json
import os
import random
import tracemalloc

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbutils.data import lines
from nbutils.data.display import sources_table
from nbutils.data.messages import Malformed
from tests.data.making import chats, opened, refusal, rows_read, write_lines
from tests.data.test_containers import rows_of, write

ROWS = chats(60)
TURNS = [[(m["role"], m["content"]) for m in row["messages"]] for row in ROWS]
ONE_EACH = ("a.jsonl", "a.json", "a.parquet", "saved", "parquets")


def turns_of(source):
    return [row for row, _ in rows_read(source)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same rows in several kinds of files, and some of them as the split `test`."""
    where = tmp_path_factory.mktemp("sources")
    for kind in ONE_EACH:
        write(kind, where, ROWS)
    train, test = Dataset.from_list(ROWS), Dataset.from_list(ROWS[:3])
    test.to_parquet(where / "parquets" / "test-0.parquet")
    DatasetDict({"train": train, "test": test}).save_to_disk(where / "saved_dict")
    Dataset.from_list(ROWS[:3], split="test").save_to_disk(where / "alone")
    for name, rows in (("train-0", ROWS[:15]), ("train-1", ROWS[15:]), ("test", ROWS[:3])):
        write_lines(where / "jsonls" / f"{name}.jsonl", rows)
    return where


@pytest.mark.parametrize(
    "name,split,rows",
    [
        *((name, "test", range(3)) for name in ("saved_dict", "parquets", "jsonls", "alone")),
        ("alone", "train", range(3)),
        *((name, "train[10:20]", range(10, 20)) for name in (*ONE_EACH, "saved_dict", "jsonls")),
    ],
)
def test_the_rows_of_a_split_are_numbered(folder, name, split, rows):
    source = opened(folder / name, split=split)
    assert turns_of(source) == [TURNS[row] for row in rows]
    assert (source.rows, source.shape.name) == (len(rows), "messages")


def test_the_embedded_corpus_and_a_part_of_it():
    source = opened("chitchat")
    rows = turns_of(source)
    assert (source.shape.name, source.rows, len(rows)) == ("messages", 7_168, 7_168)
    assert sum({role for role, _ in row} == {"user", "assistant"} for row in rows) == 4_018
    assert turns_of(opened("chitchat", split="train[5:7]")) == rows[5:7]


@pytest.mark.parametrize(
    "name,given,words",
    [
        ("a.jsonl", {"split": "test"}, "a single file, which takes no split, but its split is 'test'"),
        ("a.json", {"name": "en"}, "a single file, which takes no name, but its name is 'en'"),
        ("a.parquet", {"revision": "v1"}, "which takes no revision"),
        ("jsonls", {"revision": "v1"}, "a local folder, which takes no revision"),
        ("parquets", {"revision": "v1"}, "which takes no revision"),
        ("parquets", {"split": "validation"}, 'Unknown split "validation"'),
        ("saved", {"name": "en"}, "a saved dataset, which takes no name"),
        ("saved_dict", {"split": "train[ten]"}, "no split 'train[ten]'; it has train, test"),
        ("missing.jsonl", {}, "does not exist"),
    ],
)
def test_nothing_that_is_asked_for_is_passed_over(folder, name, given, words):
    assert words in refusal(opened, folder / name, **given)


def test_nor_of_what_is_embedded_or_on_the_hub():
    assert "the embedded corpus, which takes no split" in refusal(opened, "chitchat", split="test")
    said = refusal(opened, "nobody/nothing-of-that-name")
    assert "nobody/nothing-of-that-name cannot be opened" in said and "nbutils fetch" in said


@pytest.mark.parametrize(
    "file,data,words",
    [
        ("a.txt", b"no data", "ends in none of"),
        ("a.parquet", b"no data", "cannot be opened"),
        ("cut.jsonl.gz", gzip.compress(random.Random(0).randbytes(9_000))[:2_000], "is damaged"),
        ("bad.jsonl", b"{\nnope\n", "no row of it is a JSON object (the first: the line is no JSON"),
        ("empty.jsonl", b"", "holds no rows"),
        ("a.json", b" [ ] ", "holds no rows"),
        ("a.json", b'{"note": "once", "label": 1}', "the columns note, label, which fit none of the six shapes: "),
        ("a.json", b'[{"messages": "unfinished', "broken at character "),
        ("a.json", b'{"a": [1, 2] 3}', "broken at character "),
        ("a.json", b'[{"a": 1}] [2]', "broken at character "),
        ("a.json", b'{"data": [{"text": "a"}], "data": [{"text": "b"}]}', "the key 'data' twice"),
        ("a.json", b'{"prompt": ["a"], "completion": ["b"], "prompt": ["c"]}', "the key 'prompt' twice"),
        ("a.json", b"\xef\xbb\xbf\n", "no row of it is a JSON object"),
        ("a.jsonl", "\ufeff{}".encode("utf-16-le"), "UTF-16"),
        ("a.json", json.dumps(dict.fromkeys(map(str, range(300)), 1)).encode(), "18, 19 and 280 more, which fit none"),
    ],
)
def test_what_is_there_and_cannot_be_read_is_named_and_the_hub_is_no_advice(tmp_path, file, data, words):
    path = tmp_path / file
    path.write_bytes(data)
    said = refusal(opened, path)
    assert words in said and str(path) in said
    assert not any(word in said for word in ("the hub", "network", "nbutils fetch", "revision"))


@pytest.mark.parametrize("lost", ["data-00000-of-00001.arrow", "state.json"])
def test_a_saved_dataset_that_is_cut_is_named(tmp_path, lost):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / lost).write_bytes(b"")
    said = refusal(opened, tmp_path / "saved")
    assert "saved dataset" in said and str(tmp_path / "saved") in said


def test_a_file_of_the_same_name_makes_no_saved_dataset(tmp_path):
    write_lines(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "state.json").write_text("{}")
    assert "state.json" in refusal(opened, tmp_path)  # another kind of file


@pytest.mark.parametrize("other", ["train.parquet", "x_train.json"])
def test_two_kinds_of_files_for_one_split_are_named(tmp_path, other):
    for name in ("train.jsonl", other):
        write_lines(tmp_path / name, ROWS)
    assert f"holds train.jsonl and {other} for the split" in refusal(opened, tmp_path)


@pytest.mark.parametrize(
    "name", ["b.JSONL", "b.jsonl.bz2", "b.json.gz", os.fsdecode(b"b\xe4.jsonl"), "link", "nowhere"]
)
def test_a_file_in_a_folder_is_read_or_named(tmp_path, name):
    for folder in ("data", "more"):
        write_lines(tmp_path / folder / "a.jsonl", ROWS)
    target = tmp_path / "data" / name
    if name in ("link", "nowhere"):
        target.symlink_to(tmp_path / name.replace("link", "more"))
    else:
        write_lines(target, ROWS)
    said = refusal(opened, tmp_path / "data")
    assert ascii(name) in said and "would not be read" in said


@pytest.mark.parametrize("name", ["a*", "a[lr=1e-4]", "a?"])
def test_a_path_is_no_pattern(tmp_path, name):
    for folder, rows in ((name, 3), ("ab", 5)):
        Dataset.from_list(ROWS[:rows]).to_parquet(tmp_path / folder / "train.parquet")
    assert opened(tmp_path / name / "train.parquet").rows == 3
    assert "pattern" in refusal(opened, tmp_path / name)


@pytest.mark.parametrize(
    "taken,others",
    [
        (["data/train/a.jsonl"], ["data/test/a.jsonl"]),
        (["train.jsonl"], ["train_old.jsonl", "test.parquet"]),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"], ["chats.jsonl"]),
        (["chats_train.jsonl"], ["chats_test.jsonl"]),
        (["Train.jsonl"], ["Test.jsonl", "Validation/a.jsonl"]),
        (["chats.jsonl", "more.ndjson"], ["test.jsonl", ".hidden/x.jsonl"]),
    ],
)
def test_folders_of_lines_are_read_line_by_line_whatever_the_files_are_called(tmp_path, taken, others):
    for name in taken + others:
        write_lines(tmp_path / name, [b"{broken", *ROWS[:10]])
    source = opened(tmp_path)
    assert list(source.files) == taken
    assert [isinstance(row, Malformed) for row in turns_of(source)] == [True, *[False] * 10] * len(taken)
    assert ", ".join(taken) in sources_table([source]).loc[source.label, "files taken"]


CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: b.jsonl\n---\n"


def test_a_card_that_names_the_files_of_each_split_is_followed(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    write_lines(tmp_path / "a.jsonl", ROWS[:9])
    write_lines(tmp_path / "b.jsonl", ROWS[9:20])
    assert opened(tmp_path).rows == 11
    write_lines(tmp_path / "b.jsonl", ROWS[9:14])
    assert opened(tmp_path).rows == 5


@pytest.mark.parametrize("streaming", [False, True])
def test_what_goes_wrong_while_rows_come_in_is_a_sentence(tmp_path, streaming):
    """Not a folder of lines for us (it has a card), and broken in its middle."""
    (tmp_path / "README.md").write_text(CARD)
    write_lines(tmp_path / "b.jsonl", [*ROWS * 5, b"{broken", *ROWS * 5])
    assert refusal(lambda: rows_read(opened(tmp_path, streaming=streaming)))


@pytest.mark.parametrize(
    "document,rows",
    [
        (ROWS[0], 1),  # one row alone, not a list of messages
        (ROWS[0] | {"tags": ["a"]}, 1),
        ({"conversations": ROWS[:4]}, 4),  # a key that is a shape's, around rows
        ({"conversation": [{"speaker": m["role"], "text": m["content"]} for m in ROWS[0]["messages"]]}, 1),
    ],
)
def test_json_documents(tmp_path, document, rows):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document, indent=2))
    assert turns_of(opened(path)) == TURNS[:rows]


def test_a_json_document_is_never_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "HEAD", 1_000)  # read whole
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": 12345, "data": ROWS * 20}))
    tracemalloc.start()
    rows = lines.open_document(path)
    assert [sum(1 for _ in rows()) for _ in (1, 2)] == [20 * len(ROWS)] * 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 5


SIGNS = st.text('[]{},:"\\\n éa0', max_size=8)
VALUES = st.recursive(
    SIGNS | st.sampled_from([0.25, 1e-05, -12.5e10, 7, None, True]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SIGNS, inner, max_size=3),
    max_leaves=9,
)
ROW = st.fixed_dictionaries({"prompt": VALUES, "completion": SIGNS}, optional={"[": VALUES})


@given(
    st.lists(ROW, min_size=1, max_size=4),
    st.none() | st.dictionaries(SIGNS.map("x".__add__), SIGNS | st.lists(SIGNS)),
    st.sampled_from([None, 2]),
    st.booleans(),
    st.sampled_from(["utf-8", "utf-8-sig"]),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_documents_are_cut_where_their_rows_end(tmp_path, rows, beside, indent, ascii_alone, encoding):
    """Brackets, quotes, backslashes, commas and blanks wherever JSON can hold them."""
    path = tmp_path / "a.json"
    whole = rows if beside is None else {"rows": rows, **beside}
    path.write_text(json.dumps(whole, indent=indent, ensure_ascii=ascii_alone), encoding=encoding)
    found = lines.open_document(path)
    assert [json.loads(row) for row in found()] == rows


def test_a_broken_byte_in_a_json_document_is_one_row(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(ROWS[:3]).encode().replace(b"1 plus", b"\xff plus"))
    first, broken, last = turns_of(opened(path))
    assert [first, last] == TURNS[:3:2] and isinstance(broken, Malformed)


def test_the_shape_of_most_lines_that_are_not_broken_counts(tmp_path):
    rows = [*[b"{broken"] * 250, {"note": "x"}, *rows_of("alpaca")]
    source = opened(write_lines(tmp_path / "a.jsonl", rows))
    assert (source.shape.name, source.rows) == ("alpaca", len(rows))
    assert source.columns == ["note", *rows[-1]]


def test_a_table_is_read_as_the_texts_that_stand_in_it(tmp_path):
    """And not as what pandas takes them for."""
    cells = ["NA", "None", "null", "00010", "1.50", "True", 'say "hi", or\nnot']
    meant = [[("user", a), ("assistant", b)] for a, b in zip(cells, cells[::-1], strict=True)]
    for name, sign in (("a.csv", ","), ("a.tsv.gz", "\t")):
        pd.DataFrame({"prompt": cells, "completion": cells[::-1]}).to_csv(tmp_path / name, sep=sign, index=False)
        assert turns_of(opened(tmp_path / name)) == meant


@pytest.mark.parametrize(
    "rows,words",
    [
        (b"Dear you, how are you?,Fine\n", "row 0 has more cells than the header"),
        (b'"Quoted" word,yes\n', "expected after"),
        (b"caf\xe9,oui\n", "utf-8"),
        (b"prompt,completion,completion,,\na,b,c,,\n", "the column 'completion' twice"),
        (b"prompt;completion\na, b;c\n", "semicolons"),
    ],
)
def test_a_table_that_could_be_read_in_two_ways_is_refused(tmp_path, rows, words):
    (tmp_path / "a.csv").write_bytes(b"" if rows.startswith(b"prompt") else b"prompt,completion\n")
    (tmp_path / "a.csv").open("ab").write(rows)
    assert words in refusal(opened, tmp_path / "a.csv")
