"""The five shapes that conversation datasets come in, and reading a row of each as (role, text) messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from nbutils.core.errors import UserError
from nbutils.data.fates import Turn

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
"""Names of roles that datasets use, and ours. Any other name (such as `tool`) stays as it is."""

LINE = "__line"
"""Column of raw text lines, each a JSON object, for files that are read line by line."""


class Malformed(ValueError):
    """A row that cannot be read as a conversation; the text says why."""


@dataclass(frozen=True)
class Shape:
    """One way to write a conversation in columns: which must be there, which may be, and how to read a row."""

    name: str
    columns: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], list[Turn]]
    example: str

    def fits(self, columns: Collection[str]) -> bool:
        """Whether one of the needed columns of each group is there."""
        return all(any(name in columns for name in group) for group in self.columns)

    def used(self, columns: Collection[str]) -> list[str]:
        """The columns that reading needs."""
        names = [name for group in self.columns for name in group] + list(self.optional)
        return [name for name in names if name in columns]


def text_of(value: Any) -> str:
    """The text of a message: a string, nothing (empty), or a list of parts of which the text ones count."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, Mapping) and "type" in part for part in value):
        other = next((part["type"] for part in value if part["type"] != "text"), None)
        if other is not None:
            raise Malformed(f"a message holds a part of type {other!r:.60}, which is no text")
        return "".join(text_of(part.get("text")) for part in value)
    raise Malformed(f"a message's text is of type {type(value).__name__}")


def messages_of(value: Any) -> list[Turn]:
    """A list of {role, content} or {from, value} mappings, also where `datasets` turned it into a mapping of lists."""
    if isinstance(value, Mapping):
        lists = [column for column in value.values() if isinstance(column, list)]
        if not lists or len(lists) != len(value) or len({len(column) for column in lists}) != 1:
            raise Malformed("the messages are no list")
        value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise Malformed(
            "the messages are missing" if value is None else f"the messages are of type {type(value).__name__}"
        )
    return [_message(item) for item in value]


def _message(item: Any) -> Turn:
    if not isinstance(item, Mapping):
        raise Malformed(f"a message is of type {type(item).__name__}")
    role, text = (item.get("role"), item.get("content")) if "role" in item else (item.get("from"), item.get("value"))
    if not isinstance(role, str):
        raise Malformed("a message has no role")
    return ROLES.get(role.strip().lower(), role), text_of(text)


def _alpaca(row: Mapping[str, Any]) -> list[Turn]:
    parts = [text_of(row["instruction"]), text_of(row.get("input"))]
    asked = "\n\n".join(part.strip() for part in parts if part.strip())
    return [("user", asked), ("assistant", text_of(row["output"]))]


def _side(value: Any, role: str) -> list[Turn]:
    """One side of a prompt/completion or preference row: messages, one message, or the text of one."""
    if isinstance(value, Mapping) and isinstance(value.get("role", value.get("from")), str):
        return [_message(value)]
    return messages_of(value) if isinstance(value, list | Mapping) else [(role, text_of(value))]


def _completion(row: Mapping[str, Any]) -> list[Turn]:
    return _side(row["prompt"], "user") + _side(row["completion"], "assistant")


def _preference(row: Mapping[str, Any]) -> list[Turn]:
    asked = _side(row["prompt"] if "prompt" in row else row["conversations"], "user")
    chosen = _side(row["chosen"], "assistant")
    # Some sets repeat the prompt at the head of `chosen`.
    repeated = len(chosen) > len(asked) and chosen[: len(asked)] == asked
    return chosen if repeated else asked + chosen


SHAPES = (
    Shape("preference", (("prompt", "conversations"), ("chosen",)), (), _preference, "prompt or conversations, chosen"),
    Shape("messages", (("messages",),), (), lambda row: messages_of(row["messages"]), "messages: [{role, content}, …]"),
    Shape(
        "sharegpt",
        (("conversations", "conversation"),),
        (),
        lambda row: messages_of(row["conversations"] if "conversations" in row else row["conversation"]),
        "conversations: [{from, value}, …]",
    ),
    Shape("alpaca", (("instruction",), ("output",)), ("input",), _alpaca, "instruction, input, output"),
    Shape("completion", (("prompt",), ("completion",)), (), _completion, "prompt, completion"),
)
"""The first that fits is taken: a preference set often carries `messages` of both answers besides."""

BY_NAME = {shape.name: shape for shape in SHAPES}


def detect(columns: Collection[str], where: str) -> Shape:
    """The shape that a dataset's columns fit. UserError, naming columns and shapes, where none does."""
    for shape in SHAPES:
        if shape.fits(columns):
            return shape
    known = "; ".join(f"{shape.name} ({shape.example})" for shape in SHAPES)
    raise UserError(
        f"The dataset {where} has the columns {', '.join(columns) or '(none)'}, which fit none of the five shapes: "
        f"{known}. Rename its columns, or take it out of `datasets`."
    )


def read_rows(table: pa.Table, shape: Shape) -> list[list[Turn] | Malformed]:
    """Each row of a batch as messages, or why it cannot be read. Accepts the shape's columns, or one of JSON lines."""
    if LINE in table.column_names:
        return [_read(shape, line, lambda line: _Present(parse_line(line))) for line in table[LINE].to_pylist()]
    fast = _role_and_content(table, shape)
    if fast is not None:
        return fast
    table = table.select(shape.used(table.column_names))
    try:
        rows = table.to_pylist()
    except UnicodeDecodeError:  # nobody checks the bytes that Parquet calls text
        return [_read(shape, row, lambda row: table.slice(row, 1).to_pylist()[0]) for row in range(table.num_rows)]
    return [_read(shape, row, lambda row: row) for row in rows]


class _Present(dict[str, Any]):
    """A JSON object in which a missing key is a malformed row."""

    def __missing__(self, key: str) -> Any:
        raise Malformed(f"the column {key!r} is missing")


def parse_line(line: bytes) -> dict[str, Any]:
    """One line of a JSONL file. Malformed where it is no JSON object in UTF-8."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise Malformed("the line is no UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the line is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Malformed(f"the line holds no JSON object but a value of type {type(value).__name__}")
    return value


def _read(shape: Shape, row: Any, load: Callable[[Any], Mapping[str, Any]]) -> list[Turn] | Malformed:
    try:
        messages = shape.read(load(row))
        for role, text in messages:
            if not (text.isascii() and role.isascii()):
                (role + text).encode()  # half a surrogate pair, as JSON can spell it, is no text
    except UnicodeEncodeError:
        return Malformed("a message holds half a surrogate pair, which is no valid Unicode")
    except UnicodeDecodeError:
        return Malformed("the row is no UTF-8")
    except RecursionError:
        return Malformed("a message is nested too deeply")
    except Malformed as error:
        return error
    return messages


def _role_and_content(table: pa.Table, shape: Shape) -> list[list[Turn] | Malformed] | None:
    """The common case, list<struct<string, string>>, read column by column (five times as fast); None for any other."""
    if shape.name not in ("messages", "sharegpt"):
        return None
    column = table[shape.used(table.column_names)[0]].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)) or column.null_count:
        return None
    items = column.flatten()
    if not pa.types.is_struct(items.type) or items.null_count:
        return None
    keys = {items.type.field(i).name: items.type.field(i).type for i in range(items.type.num_fields)}
    names = ("role", "content") if "role" in keys else ("from", "value")
    if any(name not in keys or not _is_text(keys[name]) for name in names):
        return None
    try:
        raw_roles, texts = (items.field(name).to_pylist() for name in names)
    except UnicodeDecodeError:
        return None
    if None in raw_roles:
        return None
    known = {role: ROLES.get(role.strip().lower(), role) for role in set(raw_roles)}
    turns = [(known[role], text or "") for role, text in zip(raw_roles, texts, strict=True)]
    turns_left = iter(turns)
    return [list(islice(turns_left, length)) for length in column.value_lengths().to_pylist()]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
