"""JSONL, JSON, CSV and TSV files, row by row: what is broken in one row stays in that row."""

from __future__ import annotations

import csv
import io
import json
import re
from codecs import BOM_UTF8 as BOM
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from mmap import ACCESS_READ, mmap
from pathlib import Path

import pyarrow as pa

from nbutils.core.errors import UserError
from nbutils.core.files import Json, sha256_of_file, sha256_of_json, shown
from nbutils.data.messages import ROLE_KEYS, TEXT_KEYS, Malformed, load_json, printable
from nbutils.data.row_batches import BATCH_ROWS, Batch, Source, in_memory
from nbutils.data.settings import DatasetSpec
from nbutils.data.shapes import LABELS, LINE, Shape, detect, parse_line, shape_for
from nbutils.data.splits import SEPARATORS, unpacked

BATCH_BYTES = 16 * 2**20
"""Raw bytes of a batch at most: one row can be long."""
LOOKED_AT = 200
"""Rows that are not broken from which the shape is found."""
HEAD = 2**20
"""Bytes at the start of a file that tell JSON lines from a document."""
_SIGN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},:]', re.DOTALL)
"""What gives a document its structure; a string is one sign, whatever it holds."""
_FILLED = re.compile(rb"[^\s\xef\xbb\xbf]")
"""Where something begins, behind blanks and the mark with which some programs begin a file."""
_LIST, _OBJECT, _COMMA, _COLON = b"[{,:"


Rows = Callable[[], Iterator[bytes]]
"""A call that reads the rows of a file as raw JSON."""


def open_lines(path: Path, files: Sequence[Path], spec: DatasetSpec) -> Source:
    """Opens files of lines (also compressed), or JSON files with a list of rows. UserError if no shape fits."""
    is_folder = path.is_dir()
    spec.refuse("a local folder" if is_folder else "a single file", "name", *(() if is_folder else ("split",)))
    readers = [_rows_of(file) for file in files]

    def read(start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        return islice((row for rows in readers for row in rows()), start, stop)

    size = sum(1 for _ in read())
    ((_, taken),) = spec.parts({spec.whole_split: size})  # of a folder, the files make up the split already
    mine = partial(read, taken.start, taken.stop)

    def batches() -> Iterator[Batch]:
        return in_memory(pa.table({LINE: pa.array(group, pa.large_binary())}) for group in _grouped(mine()))

    shape, columns = _shape_of(mine(), spec.label)
    digest = sha256_of_json([sha256_of_file(file) for file in files])
    names = tuple(str(file.relative_to(path)) for file in files) if is_folder else ()
    return Source(spec, shape, columns, len(taken), batches, digest, files=names)


def _head(path: Path) -> bytes:
    """How a file begins. UserError where it cannot be read, or is UTF-16."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UserError(f"The dataset file {shown(path)} cannot be read ({error.strerror}).") from None
    if head.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise UserError(f"The dataset file {shown(path)} is written in UTF-16: save it as UTF-8.")
    return head.removeprefix(BOM)


def _rows_of(path: Path) -> Rows:
    head = _head(path)
    if separator := SEPARATORS.get(unpacked(path).suffix):
        return partial(_table_rows, path, separator)
    # or lines by its name alone; what is compressed begins otherwise
    listed = head.lstrip().startswith(b"[")
    found = open_document(path) if listed or path.suffix == ".json" else None
    return found or partial(_lines_of, path)


def _table_rows(path: Path, separator: str) -> Iterator[bytes]:
    """The rows of a CSV or TSV file, every cell as the text that stands there."""
    csv.field_size_limit(2**31 - 1)
    try:
        with io.TextIOWrapper(io.BufferedReader(pa.input_stream(path)), "utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter=separator, strict=True)
            names = Counter(filter(None, rows.fieldnames or ()))
            if twice := [name for name, times in names.items() if times > 1]:
                raise ValueError(f"its header has the column {twice[0]!r} twice")
            if separator == "," and len(names) == 1 and ";" in next(iter(names)):
                raise ValueError("its cells are parted by semicolons in place of commas")
            for number, row in enumerate(rows):
                if None in row:
                    raise ValueError(f"row {number} has more cells than the header has columns")
                yield json.dumps(row).encode()
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"The table {shown(path)} is broken ({error}); mend it (a cell with a quote or separator stands in quotes, "
            "and quotes in it are doubled), or write JSON lines."
        ) from error


def _lines_of(path: Path) -> Iterator[bytes]:
    try:
        with io.BufferedReader(pa.input_stream(path), BATCH_BYTES) as file:  # unpacks what is compressed
            yield from (line for line in file if line.strip())
    except OSError as error:
        raise UserError(f"The dataset file {shown(path)} is damaged ({error}); fetch it again.") from error


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


def _shape_of(lines: Iterable[bytes], where: str) -> tuple[Shape, list[str]]:
    """The shape that most of the first lines have, and the names of the columns seen; broken lines do not count."""
    votes = Counter[tuple[str, ...]]()
    labels = []
    broken = ""
    for line in lines:
        try:
            votes[tuple(row := parse_line(line))] += 1
            labels.append({name: row.get(name) for name in LABELS})
        except Malformed as error:
            broken = broken or str(error)
        if votes.total() == LOOKED_AT:
            break
    if not votes:
        why = f"no row of it is a JSON object (the first: {broken})" if broken else "it holds no rows"
        raise UserError(
            f"The dataset {where} cannot be read: {why}. Give one JSON object a line, or a list of them in a file "
            "that is not packed."
        )
    seen = list(dict.fromkeys(chain.from_iterable(votes)))
    fit = [columns for columns, _ in votes.most_common() if shape_for(columns)]
    return detect((*fit, seen)[0], where, labels), [*map(printable, seen)]


def open_document(path: Path) -> Rows | None:
    """The rows of a list, also one level down ({"data": […]}), or an object that is a row itself.

    None for JSON lines under the name of a JSON file. UserError where the JSON is broken or holds no rows.
    """
    if _looks_like_lines(path):
        return None
    with _mapped(path) as text:
        start = _FILLED.search(text).start()  # type: ignore[union-attr]  # a blank file looks like lines
        if text[start] == _LIST:
            return partial(_rows, path, start, len(text))
        if text[start] != _OBJECT:
            raise UserError(
                f"{shown(path)} holds no list of rows; give a JSON file with a list of objects, or JSON lines."
            )
        values = {}  # key → where its value is, and the object that a list begins with
        for key, begin, end in _values(path, text, start, len(text)):
            first = next(_values(path, text, begin, end), None) if text[begin] == _LIST else None
            head = text[first[1] : first[2]] if first and text[first[1]] == _OBJECT else b""
            if (name := key.strip(b'"').decode(errors="replace")) in values:
                raise _broken(path, begin, f"the object has the key {name!r} twice")
            values[name] = begin, end, head
        lists = [value for value in values.values() if value[2]]
        if len(lists) == 1 and (_is_row(_columns(lists[0][2])) or not shape_for(values)):
            return partial(_rows, path, *lists[0][:2])
    whole = path.read_bytes()
    try:
        rows = _rows_of_columns(load_json(whole.removeprefix(BOM).decode()))
    except (ValueError, RecursionError) as error:
        raise _broken(path, getattr(error, "pos", 0), str(error)) from None
    return ([whole] if rows is None else rows).__iter__


def _broken(path: Path, at: int, why: str) -> UserError:
    return UserError(
        f"The JSON in {shown(path)} is broken at character {at:,} ({why}); mend it, or write JSON lines, of which a "
        "broken one is one row."
    )


def _values(path: Path, text: mmap, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Key (empty in a list), start and end of each value in the list or object that takes up `text[start:stop]`."""
    depth, begin, key = 0, start, b""
    for sign in _SIGN.finditer(text, start, stop):
        kind = text[sign.start()]
        depth += (kind in b"[{") - (kind in b"]}")
        if depth > 1 or kind == ord('"'):
            continue
        if kind == _COLON:
            key, begin = text[begin : sign.start()].strip(), sign.end()
        elif kind == _COMMA or not depth or begin == start:
            if begin > start and (filled := _FILLED.search(text, begin, sign.start())):
                yield key, filled.start(), sign.start()
            begin = sign.end()
        if not depth:
            if more := _FILLED.search(text, begin, stop):
                raise _broken(path, more.start(), "more follows behind the end")
            return
    raise _broken(path, begin, "what starts here has no end")


def _rows_of_columns(found: Json) -> list[bytes] | None:
    """The rows of an object that holds a shape's columns, each a list or a mapping of row numbers, as pandas writes.

    None for any other. All of them are in memory at once: such a file has been in somebody's memory as a whole.
    """
    columns = [
        list(column.values()) if isinstance(column, dict) and all(map(str.isdecimal, column)) else column
        for column in found.values()
    ]
    if not shape_for(found) or not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
        return None
    if any(isinstance(value, dict) for column in columns for value in column[:1]):  # messages: this is one row
        return None
    return [json.dumps(dict(zip(found, row, strict=True))).encode() for row in zip(*columns, strict=True)]


def _rows(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with _mapped(path) as text:
        for _, begin, end in _values(path, text, start, stop):
            yield text[begin:end]


def _looks_like_lines(path: Path) -> bool:
    """Whether the first line, or half of those at the file's head, are objects of their own; or there are none."""
    objects = [bool(_columns(line)) for line in _head(path).split(b"\n") if line.strip()]
    return not objects or (len(objects) > 1 and (objects[0] or 2 * sum(objects) >= len(objects)))


def _is_row(columns: Collection[str]) -> bool:
    """Whether an object with these keys can be a row, rather than a message of one conversation."""
    is_message = all(any(key in columns for key in keys) for keys in (ROLE_KEYS, TEXT_KEYS))
    return bool(shape_for(columns)) and not is_message


def _columns(text: bytes) -> Collection[str]:
    try:
        return parse_line(text)
    except Malformed:
        return ()


@contextmanager
def _mapped(path: Path) -> Iterator[mmap]:
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as text:
        yield text
