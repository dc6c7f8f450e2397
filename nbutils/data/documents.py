"""JSON documents row by row: a list of rows, or an object that holds one, without the whole of it in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.data.shapes import SHAPES

CHUNK = 2**20
"""Characters read at a time."""
LONGEST_CUT = 16
"""Characters before a chunk's end in which a value may only look whole, or broken."""
_BLANK = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Document:
    """The rows of a JSON file: how many, and a call that reads them as raw JSON."""

    rows: int
    read: Callable[[], Iterator[bytes]]


def open_document(path: Path) -> Document | None:
    """The rows of a list, also one level down ({"data": […]}), or an object that is a row itself.

    None for JSON lines under the name of a JSON file. UserError where the JSON is broken or holds no rows.
    """
    if _looks_like_lines(path):
        return None
    with _reader(path) as reader:
        first = reader.peek()
        if first == "[":
            rows = sum(1 for _ in reader.items())
            if reader.peek():
                raise reader.broken("more stands behind the list")
            return Document(rows, lambda: _rows(path, None))
        if first not in ("{", ""):
            raise UserError(
                f"{shown(path)} holds no list of rows; give a JSON file with a list of objects, or JSON lines."
            )
        columns, lists = _survey(reader) if first else ([], {})
        if not first or reader.peek():  # nothing, or one object after another
            return None
    if len(lists) == 1:
        ((key, (rows, are_rows)),) = lists.items()
        if are_rows or not _fits(columns):  # else these are the messages of one conversation
            return Document(rows, lambda: _rows(path, key))
    return Document(1, lambda: iter([path.read_bytes()]))


def _survey(reader: _Reader) -> tuple[list[str], dict[str, tuple[int, bool]]]:
    """Keys of an object, and of each list of objects in it the length and whether its first has a row's columns."""
    columns, lists = [], {}
    for key in reader.each_key():
        columns.append(key)
        if reader.peek() != "[":
            reader.value()
            continue
        rows, are_rows, only_objects = 0, False, True
        for item, _ in reader.items():
            only_objects &= isinstance(item, dict)
            are_rows |= rows == 0 and only_objects and _fits(item)
            rows += 1
        if rows and only_objects:
            lists[key] = (rows, are_rows)
    return columns, lists


def _rows(path: Path, key: str | None) -> Iterator[bytes]:
    """The items of the list in a file, or of the list below `key` of the object in it."""
    with _reader(path) as reader:
        for name in reader.each_key() if key is not None else ():
            if name == key:
                break
            reader.value()
        for _, text in reader.items():
            yield text.encode("utf-8", "surrogateescape")


def _fits(columns: Any) -> bool:
    return any(shape.fits(columns) for shape in SHAPES)


def _looks_like_lines(path: Path) -> bool:
    """Whether the first line, or most of those at the file's head, are objects of their own."""
    with path.open("rb") as file:
        head = file.read(CHUNK)
    lines = [line for line in head.decode("utf-8-sig", "replace").split("\n") if line.strip()]
    if len(head) == CHUNK:
        lines = lines[:-1]  # cut off
    objects = [_is_object(line) for line in lines]
    return len(lines) > 1 and (objects[0] or 2 * sum(objects) > len(objects))


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


@contextmanager
def _reader(path: Path) -> Iterator[_Reader]:
    # Bytes that are no UTF-8 pass through, so that they spoil no more than their row.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield _Reader(file, path)


class _Reader:
    """JSON values one after the other; memory holds the one that is read, and a chunk."""

    def __init__(self, file: IO[str], path: Path) -> None:
        self.file = file
        self.path = path
        self.text = ""
        self.at = self.dropped = 0
        self.decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not blank; '' at the end."""
        while True:
            self.at = _BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]  # it always matches
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def take(self, expected: str) -> None:
        """Goes past the one of these characters that has to come next."""
        found = self.peek()
        if not found or found not in expected:
            raise self.broken(f"expected {' or '.join(expected)}")
        self.at += 1

    def value(self) -> tuple[Any, str]:
        """The next value, and its text."""
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except RecursionError:
                raise self.broken("nested too deeply") from None
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.text) - LONGEST_CUT
                if not (cut and self._more()):
                    raise self.broken(error.msg) from None
                continue
            except ValueError as error:  # a whole number of thousands of digits
                raise self.broken(str(error).split(";")[0]) from None
            if end > len(self.text) - LONGEST_CUT and self._more():  # a number may go on: `0` of `0.5`, of `1e-5`
                continue
            text = self.text[self.at : end]
            self.at = end
            return value, text

    def items(self) -> Iterator[tuple[Any, str]]:
        """The values of the list that comes next."""
        self.take("[")
        while self.peek() != "]":
            yield self.value()
            if self.peek() != "]":
                self.take(",]")
        self.take("]")

    def each_key(self) -> Iterator[str]:
        """The keys of the object that comes next; the caller reads each one's value before it asks for another."""
        self.take("{")
        while self.peek() != "}":
            if self.peek() != '"':
                raise self.broken("expected a key")
            key = self.value()[0]
            self.take(":")
            yield key
            if self.peek() != "}":
                self.take(",}")
        self.take("}")

    def broken(self, why: str) -> UserError:
        """What is wrong, and where."""
        return UserError(
            f"The JSON in {shown(self.path)} is broken at character {self.dropped + self.at:,} ({why}); mend it, or "
            "write JSON lines, of which a broken one is one row."
        )

    def _more(self) -> bool:
        fresh = self.file.read(max(CHUNK, len(self.text) - self.at))  # twice as much each time a value needs more
        if not fresh:
            return False  # and what stands where stays true
        self.dropped += self.at
        self.text, self.at = self.text[self.at :] + fresh, 0
        return True
