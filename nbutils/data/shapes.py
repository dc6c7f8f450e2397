"""The five shapes that conversation datasets come in, and reading a row of each as (role, text) messages."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from nbutils.core.errors import UserError
from nbutils.data.fates import MALFORMED, NOT_TEXT, TOOL_USE, Turn

NAMES = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model"),
    "system": ("system", "developer"),
    "tool": ("tool", "function", "ipython", "observation", "function_call", "function_response", "tool_call",
             "tool_response"),
}  # fmt: skip
ROLES = {name: role for role, names in NAMES.items() for name in names}
"""Names of roles that datasets use, and ours. Any other name stays as it is."""

ROLE_KEYS = ("role", "from", "speaker")
TEXT_KEYS = ("content", "value", "text")
"""Where a message says who speaks and what; a set that was put together from several has all of them."""
CALLS = ("tool_calls", "function_call")
TEXT_PARTS = (None, "text", "input_text", "output_text")
TOOL_PARTS = ("tool_use", "tool_call", "tool_result", "function_call", "function_call_output")
OTHER_PARTS = ("image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url", "file")
"""Types of the parts of a message, as the chat interfaces of today call them."""

LINE = "__line"
"""Column of raw text lines, each a JSON object, for files that are read line by line."""


class Malformed(ValueError):
    """A row that is not read as a conversation: the text says why, `fate` which reason to drop it that is."""

    def __init__(self, detail: str, fate: str = MALFORMED) -> None:
        super().__init__(detail)
        self.fate = fate


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


def absent(value: Any) -> bool:
    """Whether a key is there in name alone: null, or the NaN that pandas puts into gaps."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_of(value: Any) -> str:
    """The text of a message: a string, nothing (empty), or a list of parts, each of which is text."""
    if isinstance(value, str):
        return value
    if absent(value):
        return ""
    if isinstance(value, list):
        return "".join(map(_part, value))
    raise Malformed(f"a message's text is of type {type(value).__name__}")


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise Malformed(f"a message's text is a list with a {type(part).__name__}")
    kind = part.get("type")
    if kind in TOOL_PARTS or kind in OTHER_PARTS:
        raise Malformed(f"a message holds a part of type {kind!r}", TOOL_USE if kind in TOOL_PARTS else NOT_TEXT)
    if kind not in TEXT_PARTS:
        raise Malformed(f"a message holds a part of type {kind!r:.60}, which is no text that we know")
    return _only((text_of(part.get(key)) for key in TEXT_KEYS), "a part of a message holds two different texts")


def _only(texts: Iterable[str], problem: str) -> str:
    """The one text among empty ones, or none. Malformed where two differ."""
    found = {text: None for text in texts if text}
    if len(found) > 1:
        raise Malformed(problem)
    return next(iter(found), "")


def decoded(value: Any, what: str) -> Any:
    """The value itself, or what a string of JSON holds."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise Malformed(f"{what} is no JSON") from None


def messages_of(value: Any) -> list[Turn]:
    """A list of messages, also as a string of JSON, or where `datasets` turned it into a mapping of lists."""
    value = decoded(value, "the text in place of messages")
    if isinstance(value, Mapping):
        lists = [column for column in value.values() if isinstance(column, list)]
        if not lists or len(lists) != len(value) or len({len(column) for column in lists}) != 1:
            raise Malformed("the messages are no list")
        value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        kind = "missing" if absent(value) else f"of type {type(value).__name__}"
        raise Malformed(f"the messages are {kind}")
    return [_message(item) for item in value]


def _message(item: Any) -> Turn:
    if not isinstance(item, Mapping):
        raise Malformed(f"a message is of type {type(item).__name__}")
    if any(item.get(key) and not absent(item[key]) for key in CALLS):
        raise Malformed("a message calls a tool", TOOL_USE)
    roles = [item[key] for key in ROLE_KEYS if not absent(item.get(key))]
    if not roles or not all(isinstance(role, str) for role in roles):
        raise Malformed("a message has no role")
    roles = [role_of(role) for role in roles]
    if len(set(roles)) > 1:
        raise Malformed("a message names two different roles")
    if roles[0] == "tool":
        raise Malformed("a message is what a tool answered", TOOL_USE)
    return roles[0], _only((text_of(item.get(key)) for key in TEXT_KEYS), "a message holds two different texts")


def role_of(name: str) -> str:
    """The role that a name stands for; a name that is none of ROLES stays as it is."""
    return ROLES.get(name.strip().lower(), name)


def _messages(row: Mapping[str, Any]) -> list[Turn]:
    names = [name for name in ("messages", "conversations", "conversation") if name in row]
    return messages_of(row[names[0] if names else "messages"])


def _alpaca(row: Mapping[str, Any]) -> list[Turn]:
    system = text_of(row.get("system"))
    turns = [("system", system)] if system else []
    history = row.get("history")
    for exchange in [] if absent(history) or history == "" else decoded(history, "`history`"):
        if not isinstance(exchange, list | tuple) or len(exchange) != 2:
            raise Malformed("`history` holds something else than pairs of question and answer")
        turns += [("user", text_of(exchange[0])), ("assistant", text_of(exchange[1]))]
    parts = [text_of(row["instruction"]), text_of(row.get("input"))]
    asked = "\n\n".join(part.strip() for part in parts if part.strip())
    return [*turns, ("user", asked), ("assistant", text_of(row["output"]))]


def _side(value: Any, role: str) -> list[Turn]:
    """One side of a prompt/completion or preference row: messages, one message, or the text of one."""
    if isinstance(value, Mapping) and any(isinstance(value.get(key), str) for key in ROLE_KEYS):
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
    Shape("messages", (("messages",),), (), _messages, "messages: [{role, content}, …]"),
    Shape("sharegpt", (("conversations", "conversation"),), (), _messages, "conversations: [{from, value}, …]"),
    Shape(
        "alpaca", (("instruction",), ("output",)), ("input", "history", "system"), _alpaca, "instruction, input, output"
    ),
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
    table = table.select(shape.used(table.column_names))
    if (fast := _role_and_content(table, shape)) is not None:
        return fast
    loads = _loading(pa.struct(table.schema)) or (lambda row: row)
    try:
        return [_read(shape, row, loads) for row in table.to_pylist()]
    except UnicodeDecodeError:  # nobody checks the bytes that Parquet calls text
        return [_read(shape, row, lambda n: loads(table.slice(n, 1).to_pylist()[0])) for row in range(table.num_rows)]


def _loading(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """What decodes a value of a type that holds JSON (`datasets` makes it of unlike messages); None for any other."""
    if isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.json":
        return lambda value: decoded(value, "what its column calls JSON")
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        item = _loading(kind.value_type)
        return item and (lambda values: values and [item(value) for value in values])
    fields = {field.name: _loading(field.type) for field in kind} if pa.types.is_struct(kind) else {}
    if not any(fields.values()):
        return None
    return lambda row: row and {name: loads(row[name]) if loads else row[name] for name, loads in fields.items()}


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
    column = table[0].combine_chunks()
    if shape.read is not _messages or not pa.types.is_list(column.type) or column.null_count:
        return None
    items = column.flatten()
    if not pa.types.is_struct(items.type) or items.null_count or len(items.type) != 2:
        return None
    texts = {
        field.name for field in items.type if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    }
    names = [name for name in (*ROLE_KEYS, *TEXT_KEYS) if name in texts]
    if len(names) != 2 or names[0] not in ROLE_KEYS or names[1] not in TEXT_KEYS:
        return None
    try:
        roles, said = (items.field(name).to_pylist() for name in names)
    except UnicodeDecodeError:
        return None
    known = {role: role and role_of(role) for role in set(roles)}
    if None in known or "tool" in known.values():
        return None
    turns = iter([(known[role], text or "") for role, text in zip(roles, said, strict=True)])
    return [list(islice(turns, length)) for length in column.value_lengths().to_pylist()]
