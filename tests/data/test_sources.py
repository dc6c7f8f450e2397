"""Opening datasets: splits, folders, JSON documents, streams, and errors that say what to do."""

from __future__ import annotations

import gzip
import json
import pickle
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from nbutils.core.errors import UserError
from nbutils.data import lines, sources
from nbutils.data.display import sources_table
from nbutils.data.messages import Malformed
from nbutils.data.row_batches import Source
from tests.data.making import chats, numbered_rows, opened, rows_of, write_lines
from tests.data.test_containers import write

ROWS = chats(200)
TURNS = {i: [(m["role"], m["content"]) for m in row["messages"]] for i, row in enumerate(ROWS)}


def turns_of(source: Source) -> dict[int, Any]:
    return {number: row for number, (row, _) in numbered_rows(source).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The same rows in several kinds of files, and some of them as the split `test`."""
    where = tmp_path_factory.mktemp("sources")
    for kind in ("a.jsonl", "a.json", "lines.json", "a.parquet", "a.arrow", "saved", "parquets"):
        write(kind, where, ROWS)
    data = Dataset.from_list(ROWS)
    data.select(range(3)).to_parquet(where / "parquets" / "test-0.parquet")
    DatasetDict({"train": data, "test": data.select(range(3))}).save_to_disk(where / "saved_dict")
    for name, rows in (("train-0", ROWS[:70]), ("train-1", ROWS[70:]), ("test", ROWS[:3])):
        write_lines(where / "jsonls" / f"{name}.jsonl", rows)
    return where


@pytest.mark.parametrize(
    ("name", "split", "rows"),
    [
        *((name, "test", range(3)) for name in ("saved_dict", "parquets", "jsonls")),
        *((name, "train", range(200)) for name in ("saved_dict", "jsonls")),
        *((name, "train[10:20]", range(10, 20)) for name in (
            "a.jsonl", "a.json", "lines.json", "a.parquet", "a.arrow", "saved", "saved_dict", "parquets", "jsonls",
        )),
    ],
)  # fmt: skip
def test_the_rows_of_a_split_are_numbered(folder, name, split, rows):
    source = opened(folder / name, split=split)
    assert turns_of(source) == {i: TURNS[row] for i, row in enumerate(rows)}
    assert (source.rows, source.shape.name) == (len(rows), "messages")
    assert source.label == str(folder / name) + (f"[{split}]" if split != "train" else "")


def test_the_embedded_corpus_and_a_part_of_it():
    source = opened("chitchat")
    rows = turns_of(source)
    assert (source.shape.name, source.rows, len(rows)) == ("messages", 7_168, 7_168)
    assert sum({role for role, _ in row} == {"user", "assistant"} for row in rows.values()) == 4_018
    assert all(row[0][0] == "user" for row in rows.values() if row)
    assert turns_of(opened("chitchat", split="train[5:7]")) == {0: rows[5], 1: rows[6]}


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("a.jsonl", {"split": "test"}, "a single file, which takes no split, but its split is 'test'"),
        ("a.json", {"split": "test[:3]"}, "takes no split"),
        ("a.parquet", {"split": "test"}, "takes no split"),
        ("a.jsonl", {"name": "en"}, "a single file, which takes no name, but its name is 'en'"),
        ("a.parquet", {"revision": "v1"}, "which takes no revision"),
        ("jsonls", {"revision": "v1"}, "a local folder, which takes no revision"),
        ("parquets", {"revision": "v1"}, "which takes no revision"),
        ("saved", {"split": "test"}, "no split 'test'; it has train"),
        ("saved", {"name": "en"}, "a saved dataset, which takes no name"),
        ("saved_dict", {"split": "train[ten]"}, "no split 'train[ten]'; it has train, test"),
        ("saved_dict", {"split": "validation"}, "no split 'validation'; it has train, test"),
        ("parquets", {"split": "validation"}, 'Unknown split "validation"'),
        ("missing.jsonl", {}, "does not exist"),
        ("missing.parquet", {}, "does not exist"),
        ("chitchat", {"split": "test"}, "the embedded corpus, which takes no split"),
        ("nobody/nothing-of-that-name", {}, "nobody/nothing-of-that-name cannot be opened"),
        ("nobody/nothing-of-that-name", {}, "nbutils fetch"),
    ],
)
def test_nothing_that_is_asked_for_is_passed_over(folder, name, spec, words):
    elsewhere = name == "chitchat" or name.startswith("nobody")
    with pytest.raises(UserError) as error:
        opened(name if elsewhere else folder / name, **spec)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.txt": b"no data"}, "ends in none of"),
        ({"a.parquet": b"no data"}, "cannot be opened"),
        ({"a.json.gz": b"no data"}, "a.json.gz"),
        ({"folder/a.parquet": b"no data"}, "cannot be opened"),
        ({"cut.jsonl.gz": gzip.compress(random.Random(0).randbytes(9_000))[:2_000]}, "is damaged"),
        ({"bad.jsonl": b"{\nnope\n"}, "no row of it is a JSON object (the first: the line is no JSON"),
        ({"empty.jsonl": b""}, "holds no rows"),
        ({"a.json": b" [ ] "}, "holds no rows"),
        *(({"a.json": text}, "broken at character ") for text in (
            b"[{}, {]", b'[{"messages": "unfinished', b'{"a": [1, 2] 3}', b'[{"a": 1}] [2]',
        )),
        ({"both/train.jsonl": b"{}", "both/train.parquet": b""}, "holds train.jsonl and train.parquet for the split"),
    ],
)  # fmt: skip
def test_what_is_there_and_cannot_be_read_is_named_and_the_hub_is_no_advice(tmp_path, files, words):
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    path = tmp_path / Path(next(iter(files))).parts[0]
    with pytest.raises(UserError) as error:
        opened(path)
    said = str(error.value)
    assert words in said and str(path) in said and "\n" not in said
    assert not any(word in said for word in ("the hub", "network", "nbutils fetch", "revision"))


@pytest.mark.parametrize("name", ["a*", "a[lr=1e-4]", "a?"])
def test_a_path_is_no_pattern(tmp_path, name):
    for folder, rows in ((name, 3), ("ab", 5)):
        (tmp_path / folder).mkdir()
        frame = pd.DataFrame({"prompt": ["Hi"] * rows, "completion": ["Hello"] * rows})
        frame.to_parquet(tmp_path / folder / "train.parquet")
        frame.to_csv(tmp_path / folder / "train.csv", index=False)
    for file in ("train.parquet", "train.csv"):
        assert opened(tmp_path / name / file).rows == 3
    with pytest.raises(UserError, match="pattern"):
        opened(tmp_path / name)


def test_a_split_that_was_saved_alone_keeps_its_name(tmp_path):
    Dataset.from_list(ROWS[:5], split="test").save_to_disk(tmp_path / "test")
    assert opened(tmp_path / "test").rows == opened(tmp_path / "test", split="test").rows == 5


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["chats.jsonl", "more.ndjson"], ["chats.jsonl", "more.ndjson"]),
        (["data/train/a.jsonl", "data/test/a.jsonl"], ["data/train/a.jsonl"]),
        (["train.jsonl", "train_old.jsonl"], ["train.jsonl"]),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"],) * 2,
        (["chats_train.jsonl", "chats_test.jsonl"], ["chats_train.jsonl"]),
        (["chats.jsonl", "test.jsonl", ".hidden/x.jsonl"], ["chats.jsonl"]),
        (["train.jsonl", "test.parquet"], ["train.jsonl"]),
    ],
)
def test_folders_of_lines_are_read_line_by_line_whatever_the_files_are_called(tmp_path, files, taken):
    for number, name in enumerate(files):
        write_lines(tmp_path / name, [b"{broken", *ROWS[number * 10 : number * 10 + 10]])
    source = opened(tmp_path)
    assert list(source.files) == taken
    assert source.rows == 11 * len(taken)
    broken = [number for number, row in turns_of(source).items() if isinstance(row, Malformed)]
    assert broken == [11 * number for number in range(len(taken))]
    assert ", ".join(taken) in sources_table([source]).loc[source.label, "files taken"]


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
    ],
)
def test_json_documents(tmp_path, text, rows):
    path = tmp_path / "a.json"
    path.write_text(text)
    assert turns_of(opened(path)) == {i: TURNS[i] for i in range(rows)}


def test_a_json_document_is_never_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "HEAD", 1_000)  # read whole
    path = tmp_path / "a.json"
    text = json.dumps({"a": 12345, "data": ROWS * 12, "b": ['x\\"é']}, ensure_ascii=False)
    path.write_text(text)
    tracemalloc.start()
    rows = lines.open_document(path)
    assert rows is not None
    assert sum(json.loads(row) == ROWS[i % len(ROWS)] for i, row in enumerate(rows())) == 12 * len(ROWS)
    assert sum(1 for _ in rows()) == 12 * len(ROWS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
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
        found = lines.open_document(path)
        assert found is not None and [json.loads(row) for row in found()] == rows, path.read_text()


def test_a_broken_byte_in_a_json_document_is_one_row(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(ROWS[:3]).encode().replace(b"1 plus", b"\xff plus"))
    rows = turns_of(opened(path))
    assert (rows[0], rows[2]) == (TURNS[0], TURNS[2])
    assert isinstance(rows[1], Malformed)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_goes_wrong_while_rows_come_in_is_a_sentence(tmp_path, streaming):
    """Not a folder of lines for us (it has a card), and broken in its middle."""
    write_lines(tmp_path / "a.jsonl", [*ROWS * 5, b"{broken", *ROWS * 5])
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: a.jsonl\n---\n")
    with pytest.raises(UserError, match=r"^[^\n]+$"):
        numbered_rows(opened(tmp_path, streaming=streaming))


@pytest.mark.parametrize("name", ["a.jsonl", "saved"])
def test_a_batch_travels_as_its_own_rows_alone(folder, monkeypatch, name):
    for module in (sources, lines):
        monkeypatch.setattr(module, "BATCH_ROWS", 20)
    batch = next(iter(opened(folder / name).batches()))
    travels = pickle.dumps(batch)
    assert len(travels) < 9_000 and pickle.loads(travels).read().equals(batch.read())


@pytest.mark.parametrize(
    ("rows", "shape", "columns"),
    [
        ([b"{broken", {"note": "x"}, *rows_of("alpaca")], "alpaca", ["note", "instruction", "input", "output"]),
        ([b"{broken"] * 250 + ROWS[:9], "messages", ["messages"]),
    ],
)
def test_the_shape_of_most_lines_that_are_not_broken_counts(tmp_path, rows, shape, columns):
    source = opened(write_lines(tmp_path / "a.jsonl", rows))
    assert (source.shape.name, source.rows, source.columns) == (shape, len(rows), columns)
