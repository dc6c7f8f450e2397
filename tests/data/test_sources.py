"""Opening datasets: files of every kind, folders, saved datasets, streams, and errors that say what to do."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from nbutils.core.errors import UserError
from nbutils.data import documents
from nbutils.data.batches import Source
from nbutils.data.display import sources_table
from nbutils.data.messages import Malformed
from nbutils.data.settings import DatasetSpec
from nbutils.data.shapes import read_rows
from nbutils.data.sources import open_source
from tests.data.making import chats, rows_of, write_lines


def opened(path: Path | str, *, streaming: bool = False, **spec: object) -> Source:
    return open_source(DatasetSpec(path=str(path), **spec), streaming)


def numbered_rows(source: Source) -> dict[int, object]:
    found = {}
    for batch in source.batches():
        for number, (row, _) in enumerate(read_rows(batch.read(), source.shape)):
            found[batch.start + number] = row
    return found


ROWS = chats(1_203)
TURNS = {i: [(m["role"], m["content"]) for m in row["messages"]] for i, row in enumerate(ROWS)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The same rows in every kind of file."""
    where = tmp_path_factory.mktemp("sources")
    write_lines(where / "a.jsonl", ROWS)
    (where / "a.jsonl.gz").write_bytes(gzip.compress((where / "a.jsonl").read_bytes()))
    (where / "a.json").write_text(json.dumps(ROWS))
    (where / "nested.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    (where / "lines.json").write_bytes((where / "a.jsonl").read_bytes())
    data = Dataset.from_list(ROWS)
    data.to_parquet(where / "a.parquet")
    data.save_to_disk(where / "saved")
    DatasetDict({"train": data, "test": data.select(range(5))}).save_to_disk(where / "saved_dict")
    with pa.OSFile(str(where / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, data.data.schema) as writer:
        writer.write_table(data.data.table)
    (where / "parquets").mkdir()
    data.select(range(700)).to_parquet(where / "parquets" / "train-0.parquet")
    data.select(range(700, len(ROWS))).to_parquet(where / "parquets" / "train-1.parquet")
    data.select(range(3)).to_parquet(where / "parquets" / "test-0.parquet")
    write_lines(where / "jsonls" / "train-0.jsonl", ROWS[:700])
    write_lines(where / "jsonls" / "train-1.jsonl", ROWS[700:])
    write_lines(where / "jsonls" / "test.jsonl", ROWS[:3])
    return where


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.jsonl.gz", "a.json", "nested.json", "lines.json", "a.parquet", "a.arrow", "saved", "saved_dict",
     "parquets", "jsonls"],
)  # fmt: skip
def test_every_kind_of_file_gives_the_same_numbered_rows(folder, name):
    source = opened(folder / name)
    assert (source.shape.name, source.rows) == ("messages", len(ROWS))
    assert numbered_rows(source) == TURNS


@pytest.mark.parametrize("name", ["a.parquet", "parquets"])
def test_streaming_gives_the_same_rows_without_knowing_how_many(folder, name):
    source = opened(folder / name, streaming=True)
    assert source.rows is None
    assert numbered_rows(source) == TURNS


@pytest.mark.parametrize(("name", "rows"), [("saved_dict", 5), ("parquets", 3), ("jsonls", 3)])
def test_another_split(folder, name, rows):
    source = opened(folder / name, split="test")
    assert (source.rows, source.label) == (rows, f"{folder / name}[test]")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "lines.json", "a.parquet", "a.arrow", "saved", "saved_dict",
                                  "parquets", "jsonls"])  # fmt: skip
def test_part_of_a_split(folder, name):
    source = opened(folder / name, split="train[10:20]")
    assert numbered_rows(source) == {i: TURNS[10 + i] for i in range(10)}
    assert source.rows == 10


def test_part_of_the_embedded_corpus():
    rows = numbered_rows(opened("chitchat"))
    assert numbered_rows(opened("chitchat", split="train[5:7]")) == {0: rows[5], 1: rows[6]}


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("a.jsonl", {"split": "test"}, "a single file, which has no splits, but its split is 'test'"),
        ("a.json", {"split": "test[:3]"}, "has no splits"),
        ("a.parquet", {"split": "test"}, "has no splits"),
        ("a.jsonl", {"name": "en"}, "a single file, which has no configurations, but its name is 'en'"),
        ("a.parquet", {"revision": "v1"}, "which has no revisions"),
        ("jsonls", {"revision": "v1"}, "a local folder, which has no revisions"),
        ("parquets", {"revision": "v1"}, "which has no revisions"),
        ("saved", {"split": "test"}, "no split 'test'; it has train"),
        ("saved", {"name": "en"}, "a saved dataset, which has no configurations"),
        ("saved_dict", {"split": "train[ten]"}, "cannot be sliced as train[ten]"),
        ("chitchat", {"split": "test"}, "the embedded corpus, which has no splits"),
    ],
)
def test_nothing_that_is_asked_for_is_passed_over(folder, name, spec, words):
    with pytest.raises(UserError) as error:
        opened("chitchat" if name == "chitchat" else folder / name, **spec)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_split_that_was_saved_alone_keeps_its_name(tmp_path):
    Dataset.from_list(ROWS[:5], split="test").save_to_disk(tmp_path / "test")
    assert opened(tmp_path / "test").rows == opened(tmp_path / "test", split="test").rows == 5


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["chats.jsonl", "more.ndjson"], ["chats.jsonl", "more.ndjson"]),
        (
            ["data/train/a.jsonl", "data/train/b.jsonl", "data/test/a.jsonl"],
            ["data/train/a.jsonl", "data/train/b.jsonl"],
        ),
        (["train.jsonl", "train_old.jsonl"], ["train.jsonl"]),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"], None),
        (["chats_train.jsonl", "chats_test.jsonl"], ["chats_train.jsonl"]),
        (["chats.jsonl", "test.jsonl", ".hidden/x.jsonl"], ["chats.jsonl"]),
        (["train.jsonl", "test.parquet"], ["train.jsonl"]),
    ],
)
def test_folders_of_lines_are_read_line_by_line_whatever_the_files_are_called(tmp_path, files, taken):
    for number, name in enumerate(files):
        write_lines(tmp_path / name, [b"{broken", *ROWS[number * 10 : number * 10 + 10]])
    source = opened(tmp_path)
    taken = taken or files
    assert list(source.files) == taken
    assert source.rows == 11 * len(taken)
    broken = [number for number, row in numbered_rows(source).items() if isinstance(row, Malformed)]
    assert broken == [11 * number for number in range(len(taken))]
    assert ", ".join(taken) in sources_table([source]).loc[source.label, "files taken"]


def test_two_kinds_of_files_for_one_split_are_named(tmp_path):
    write_lines(tmp_path / "train.jsonl", ROWS[:9])
    Dataset.from_list(ROWS[9:20]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"holds train\.jsonl and train\.parquet for the split 'train'"):
        opened(tmp_path)


def test_a_card_that_names_the_files_of_each_split_is_followed(tmp_path):
    write_lines(tmp_path / "a.jsonl", ROWS[:9])
    write_lines(tmp_path / "b.jsonl", ROWS[9:20])
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: b.jsonl\n---\n"
    )
    assert opened(tmp_path).rows == 11


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (json.dumps(ROWS[0]), 1),  # one row alone, not a list of messages
        (json.dumps(ROWS[0], indent=2), 1),
        (json.dumps({"conversations": ROWS[:4]}), 4),  # a key that is a shape's, around rows
        (json.dumps({"note": [], "rows": ROWS[:4]}, indent=1), 4),
        (json.dumps(ROWS[0] | {"tags": ["a"]}), 1),
        ("\n[\n" + ",\n".join(map(json.dumps, ROWS[:7])) + "\n]\n", 7),
        (" [ ] ", None),
    ],
)
def test_json_documents(tmp_path, text, rows):
    path = tmp_path / "a.json"
    path.write_text(text)
    if rows is None:
        with pytest.raises(UserError):
            opened(path)
    else:
        assert numbered_rows(opened(path)) == {i: TURNS[i] for i in range(rows)}


def test_a_json_document_is_never_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "HEAD", 1_000)  # read whole
    path = tmp_path / "a.json"
    text = json.dumps({"a": 12345, "data": ROWS * 10, "b": ['x\\"é']}, ensure_ascii=False)
    path.write_text(text)
    tracemalloc.start()
    document = documents.open_document(path)
    assert sum(json.loads(row) == ROWS[i % len(ROWS)] for i, row in enumerate(document.read())) == document.rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert document.rows == 10 * len(ROWS)
    assert peak < len(text) / 5


def test_generated_json_documents_are_cut_where_their_rows_end(tmp_path):
    """Brackets, quotes, backslashes, commas and blanks wherever JSON can hold them."""
    rng = random.Random(0)
    marks = ["[", "]", "{", "}", ",", ":", '"', "\\", "\n", " ", "é", "a", "0"]

    def text() -> str:
        return "".join(rng.choices(marks, k=rng.randrange(9)))

    def value(depth: int) -> object:
        kind = rng.randrange(6 if depth else 4)
        if kind > 3:
            items = [value(depth - 1) for _ in range(rng.randrange(4))]
            return items if kind == 4 else {text(): item for item in items}
        return (text(), rng.choice([0.25, 1e-05, -12.5e10, 7]), None, True)[kind]

    for number in range(300):
        rows = [{"prompt": value(2), text(): value(2), "completion": text()} for _ in range(rng.randrange(1, 5))]
        whole = rng.choice([rows, {"note": value(1), "rows": rows, text() + "x": text()}])
        path = tmp_path / f"{number}.json"
        path.write_text(
            json.dumps(whole, indent=rng.choice([None, 2]), ensure_ascii=rng.random() < 0.5),
            encoding=rng.choice(["utf-8", "utf-8-sig"]),
        )
        document = documents.open_document(path)
        assert document is not None and [json.loads(row) for row in document.read()] == rows, path.read_text()
        assert document.rows == len(rows)


def test_a_broken_byte_in_a_json_document_is_one_row(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(ROWS[:3]).encode().replace(b"1 plus", b"\xff plus"))
    rows = numbered_rows(opened(path))
    assert (rows[0], rows[2]) == (TURNS[0], TURNS[2])
    assert isinstance(rows[1], Malformed)


@pytest.mark.parametrize("text", ["[{}, {]", '[{"messages": "unfinished', '{"a": [1, 2] 3}', '[{"a": 1}] [2]'])
def test_broken_json_says_where(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"broken at character [\d,]+ "):
        opened(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_goes_wrong_while_rows_come_in_is_a_sentence(tmp_path, streaming):
    """Not a folder of lines for us (it has a card), and broken in its middle."""
    write_lines(tmp_path / "a.jsonl", [*ROWS, b"{broken", *ROWS])
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: a.jsonl\n---\n")
    with pytest.raises(UserError) as error:
        numbered_rows(opened(tmp_path, streaming=streaming))
    assert "\n" not in str(error.value)


def test_a_batch_travels_as_its_own_rows_alone(folder):
    import pickle

    for name in ("a.jsonl", "saved"):
        batch = next(iter(opened(folder / name).batches()))
        assert len(pickle.dumps(batch)) < 200_000
        assert pickle.loads(pickle.dumps(batch)).read().equals(batch.read())


def test_the_embedded_corpus():
    source = open_source(DatasetSpec(path="chitchat"), False)
    rows = numbered_rows(source)
    assert (source.shape.name, source.rows, len(rows)) == ("messages", 7_168, 7_168)
    assert sum({role for role, _ in row} == {"user", "assistant"} for row in rows.values()) == 4_018
    assert all(row[0][0] == "user" for row in rows.values() if row)


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("missing.jsonl", {}, "does not exist"),
        ("missing.parquet", {}, "does not exist"),
        ("saved_dict", {"split": "validation"}, "no split 'validation'; it has train, test"),
        ("parquets", {"split": "validation"}, 'Unknown split "validation"'),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(folder, name, spec, words):
    with pytest.raises(UserError) as error:
        opened(folder / name, **spec)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unreachable_hub_dataset_says_what_to_do():
    with pytest.raises(UserError) as error:
        open_source(DatasetSpec(path="nobody/nothing-of-that-name"), False)
    assert "nobody/nothing-of-that-name" in str(error.value)
    assert "nbutils fetch" in str(error.value)


def test_a_damaged_gzip_file(folder, tmp_path):
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes((folder / "a.jsonl.gz").read_bytes()[:2_000])
    with pytest.raises(UserError, match="is damaged"):
        opened(path)


def test_the_shape_of_most_lines_counts(tmp_path):
    path = write_lines(tmp_path / "mixed.jsonl", [b"{broken", {"note": "x"}, *rows_of("alpaca"), b"{broken"])
    source = opened(path)
    assert (source.shape.name, source.rows) == ("alpaca", 13)
    assert source.columns == ["note", "instruction", "input", "output"]


def test_a_file_without_a_readable_row_says_so(tmp_path):
    with pytest.raises(UserError, match=r"no row of it is a JSON object \(the first: the line is no JSON"):
        opened(write_lines(tmp_path / "bad.jsonl", [b"{", b"nope"]))
    with pytest.raises(UserError, match="holds no rows"):
        opened(write_lines(tmp_path / "empty.jsonl", []))


def test_many_broken_lines_at_the_head_are_no_more_than_broken_lines(tmp_path):
    source = opened(write_lines(tmp_path / "a.jsonl", [b"{broken"] * 250 + ROWS[:9]))
    assert (source.shape.name, source.rows) == ("messages", 259)
