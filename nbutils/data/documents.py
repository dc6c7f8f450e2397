"""JSON documents row by row: a list of rows, or an object that holds one, without the whole of it in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.data.messages import Malformed
from nbutils.data.shapes import fitting, parse_line

HEAD = 2**20
"""Bytes at the start of a file that tell JSON lines from a document."""
_SIGN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},:]', re.DOTALL)
"""What gives a document its structure; a string is one sign, whatever it holds."""
_FILLED = re.compile(rb"[^\s\xef\xbb\xbf]")
"""Where something begins, behind blanks and the mark with which some programs begin a file."""
_LIST, _OBJECT, _COMMA, _COLON = b"[{,:"


Rows = Callable[[], Iterator[bytes]]
"""A call that reads the rows of a file as raw JSON."""


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
        values = {
            key.strip(b'"').decode(errors="replace"): where for key, *where in _values(path, text, start, len(text))
        }
        lists = [(first, where) for where in values.values() if (first := _first_object(path, text, *where))]
        # Objects that are no rows, under a key that is a shape's, are the messages of one conversation.
        if len(lists) == 1 and (fitting(_columns(lists[0][0])) or not fitting(values)):
            return partial(_rows, path, *lists[0][1])
    whole = path.read_bytes()
    try:
        rows = _rows_of_columns(json.loads(whole))
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


def _first_object(path: Path, text: mmap, start: int, stop: int) -> bytes | None:
    """What a list begins with, if that is an object; None for anything else."""
    first = next(_values(path, text, start, stop), None) if text[start] == _LIST else None
    return text[first[1] : first[2]] if first and text[first[1]] == _OBJECT else None


def _rows_of_columns(found: Mapping[str, Any]) -> list[bytes] | None:
    """The rows of an object that holds a shape's columns, each a list or a mapping of row numbers, as pandas writes.

    None for any other. All of them are in memory at once: such a file has been in somebody's memory as a whole.
    """
    columns = [
        list(column.values()) if isinstance(column, dict) and all(map(str.isdecimal, column)) else column
        for column in found.values()
    ]
    if not fitting(found) or not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
        return None
    if any(isinstance(value, dict) for column in columns for value in column[:1]):  # messages: this is one row
        return None
    return [json.dumps(dict(zip(found, row, strict=True))).encode() for row in zip(*columns, strict=True)]


def _rows(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with _mapped(path) as text:
        for _, begin, end in _values(path, text, start, stop):
            yield text[begin:end]


def _looks_like_lines(path: Path) -> bool:
    """Whether at least half of the lines at the file's head are objects of their own; or there are none."""
    with path.open("rb") as file:
        objects = [bool(_columns(line)) for line in file.read(HEAD).split(b"\n") if line.strip()]
    return not objects or (len(objects) > 1 and 2 * sum(objects) >= len(objects))


def _columns(text: bytes) -> Collection[str]:
    try:
        return parse_line(text)
    except Malformed:
        return ()


@contextmanager
def _mapped(path: Path) -> Iterator[mmap]:
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as text:
        yield text
