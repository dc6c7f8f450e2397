"""Opening datasets: files of every kind, folders, saved datasets, streams, and errors that say what to do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from nbutils.core.errors import UserError
from nbutils.data.settings import DatasetSpec
from nbutils.data.shapes import read_rows
from nbutils.data.sources import Source, open_source
from tests.data.making import chats, rows_of, write_lines


def opened(path: Path | str, *, streaming: bool = False, **spec: object) -> Source:
    return open_source(DatasetSpec(path=str(path), **spec), streaming)


def numbered_rows(source: Source) -> dict[int, object]:
    found = {}
    for batch in source.batches():
        for number, row in enumerate(read_rows(batch.read(), source.shape)):
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


def test_part_of_a_split(folder):
    assert numbered_rows(opened(folder / "parquets", split="train[10:20]")) == {i: TURNS[10 + i] for i in range(10)}


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


def test_a_file_without_a_readable_row_stops_with_the_shapes(tmp_path):
    with pytest.raises(UserError, match="five shapes"):
        opened(write_lines(tmp_path / "bad.jsonl", [b"{", b"nope"]))
    with pytest.raises(UserError, match="five shapes"):
        opened(write_lines(tmp_path / "empty.jsonl", []))
