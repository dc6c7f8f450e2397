"""JSONL and JSON files, row by row: what is broken in one row stays in that row."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import pyarrow as pa

from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.data.batches import BATCH_BYTES, BATCH_ROWS, Batch, InMemory
from nbutils.data.shapes import LINE, Malformed, Shape, detect, parse_line

LINE_ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
LOOKED_AT = 200
"""Rows from which the shape is found."""


@dataclass(frozen=True)
class Lines:
    """A file of rows: their shape, the columns seen, how many there are, and batches of raw JSON."""

    shape: Shape
    columns: list[str]
    rows: int
    batches: Callable[[], Iterator[Batch]]


def files_of(path: Path, split: str) -> list[Path]:
    """The files read here that a path stands for: itself, or a folder's JSONL files whose names start with the split.

    Empty for anything else, which the `datasets` library opens.
    """
    if path.is_dir():
        return sorted(file for file in path.glob(f"{split}*") if file.name.endswith(LINE_ENDINGS))
    return [path] if path.name.endswith((*LINE_ENDINGS, ".json")) else []


def open_lines(paths: Sequence[Path], where: str) -> Lines:
    """Opens JSONL files (also compressed with gzip), or a JSON file with a list of rows. UserError if no shape fits."""
    if paths[0].suffix == ".json":
        rows = _rows_of_json(paths[0])
        if rows is not None:
            return _lines(lambda: iter(rows), len(rows), where)

    def read() -> Iterator[bytes]:
        return (line for path in paths for line in _lines_of(path))

    return _lines(read, sum(1 for _ in read()), where)


def _lines(read: Callable[[], Iterator[bytes]], rows: int, where: str) -> Lines:
    def batches() -> Iterator[Batch]:
        start = 0
        for group in _grouped(read()):
            yield Batch(start, InMemory(pa.table({LINE: pa.array(group, pa.large_binary())})))
            start += len(group)

    return Lines(*_shape_of(list(islice(read(), LOOKED_AT)), where), rows, batches)


def _lines_of(path: Path) -> Iterator[bytes]:
    with _opened(path) as file:
        try:
            for line in file:
                if line.strip():
                    yield line
        except (EOFError, gzip.BadGzipFile) as error:
            raise UserError(f"The dataset file {shown(path)} is damaged ({error}); fetch it again.") from error


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _rows_of_json(path: Path) -> list[bytes] | None:
    """The rows of a list in a JSON file, also one level down ({"data": […]}); None for JSON lines under that name."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 and all(isinstance(row, dict) for row in lists[0]) else [value]
    if not isinstance(value, list):
        raise UserError(f"{shown(path)} holds no list of rows; give a JSON file with a list of objects, or JSON lines.")
    return [json.dumps(row).encode() for row in value]


def _grouped(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    size = 0
    for line in lines:
        group.append(line)
        size += len(line)
        if len(group) == BATCH_ROWS or size > BATCH_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _shape_of(lines: list[bytes], where: str) -> tuple[Shape, list[str]]:
    """The shape that most of the first lines have, and the names of the columns seen."""
    seen: dict[str, None] = {}
    votes: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        try:
            columns = tuple(parse_line(line))
        except Malformed:
            continue
        seen |= dict.fromkeys(columns)
        votes[columns] += 1
    for columns, _ in votes.most_common():
        try:
            return detect(columns, where), list(seen)
        except UserError:
            continue
    return detect(list(seen), where), list(seen)
