"""The six shapes that conversation datasets come in, and reading a row of each as (role, text) messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from typing import Any

import pyarrow as pa

from nbutils.core.errors import UserError
from nbutils.core.files import Json
from nbutils.data.fates import NOT_TEXT, REJECTED, TOOL_USE, Turn
from nbutils.data.messages import (
    LISTED,
    MARKS,
    ROLE_KEYS,
    SAID,
    STOP,
    TEXT_KEYS,
    Malformed,
    Reading,
    absent,
    decoded,
    holds_text,
    load_json,
    role_of,
    unlearnt,
)
from nbutils.data.templates import any_marked, refuse_template, rendered

SHOWN_COLUMNS = 20
"""Columns that a sentence names at most."""
LINE = "__line"
"""Column of raw text lines, each a JSON object, for files that are read line by line."""
LABELS = ("label", "kto_tag")
"""Columns that say with `false` or 0 that a row shows what is not to be learnt, unless they hold names or numbers."""

MEDIA, PLACE = ("image", "images", "video", "videos", "audio", "audios"), re.compile("<(?:image|video|audio)>")
"""Columns of pictures and sounds, and where in a text they belong."""


@dataclass(frozen=True)
class Shape:
    """One way to write a conversation in columns: which must be there, which may be, and how to read a row.

    `read` gets what is in the needed columns and the optional ones; `instead` are those of rows that lack the needed.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    read: Callable[..., list[Turn]]
    example: str
    optional: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    labels: tuple[str, ...] = LABELS

    def fits(self, columns: Collection[str]) -> bool:
        """Whether one of the needed columns of each group is there."""
        return all(any(name in columns for name in group) for group in self.columns)

    @property
    def known(self) -> tuple[str, ...]:
        """All columns that it has a use for."""
        return (*(name for group in self.columns for name in group), *self.optional, *MARKS, *self.labels)


def _alpaca(reading: Reading, asked: Any, output: Any, more: Any, history: Any, system: Any) -> list[Turn]:
    if isinstance(output, list):
        raise Malformed("`output` is a list, and nothing says how that is one text")
    turns = [("system", text)] if (text := reading.text(system)) else []
    history = [] if absent(history) or history == "" else decoded(history, "`history`")
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        raise Malformed("`history` holds something else than pairs of question and answer")
    for question, answer in history:
        turns += [("user", reading.text(question)), ("assistant", reading.text(answer))]
    parts = [text for text in map(reading.text, (asked, more)) if text.strip()]
    asked = "\n\n".join(map(str.strip, parts)) if len(parts) > 1 else "".join(parts)  # it may end in an open header
    return _plain([*turns, ("user", asked), ("assistant", reading.text(output))])


def _side(reading: Reading, value: Any, role: str) -> list[Turn]:
    """One side of a prompt/completion or preference row: messages, one message, or the text of one."""
    if isinstance(value, Mapping) and any(isinstance(value.get(key), str) for key in ROLE_KEYS):
        return [reading.message(value)]
    listed = isinstance(value, list | Mapping) or LISTED.fullmatch(str(value))
    return reading.messages(value) if listed else [(role, reading.text(value))]


def _answered(reading: Reading, prompt: Any, value: Any) -> list[Turn]:
    """Prompt and answer together. Some sets repeat the prompt, or its last message, at the head of the answer."""
    asked, answer = _side(reading, prompt, "user"), _side(reading, value, "assistant")
    said, last = ([(role, text.strip()) for role, text in turns] for turns in (answer, asked[-1:]))
    if [role for role, _ in said if role != "system"][:1] == ["user"]:
        if {*last} & {*said}:
            length = said.index(last[0]) + 1
            return max(asked, answer[:length], key=len) + answer[length:]
        if isinstance(value, str):  # another conversation, as JSON: that was asked for
            answer = [("assistant", value)]
        elif last and last[0][0] == "user" and last[0][1]:
            raise Malformed("its answer is a conversation that begins with another question than the prompt's")
    return _plain(asked + answer)


def _plain(turns: list[Turn]) -> list[Turn]:
    """The turns, or the messages that their texts are once more, where these were written with a template already."""
    messages = rendered("".join(text for role, text in turns if role != "system"))
    if {"user", "assistant"} <= {role for role, _ in messages}:
        return [turn for turn in turns if turn[0] == "system"] + messages
    return turns


def _text(reading: Reading, value: Any) -> list[Turn]:
    text = reading.text(value).strip()
    messages = rendered(text)
    if text and not messages:
        refuse_template(text)
        raise Malformed(
            f"its `text` is plain text ({text[:40]!r}), which does not say who asks and who answers; give one of the "
            f"shapes {KNOWN}",
            STOP,
        )
    return messages


SHAREGPT = ("conversations", "conversation")
SHAPES = (
    Shape("preference", (("prompt", "conversations"), ("chosen",)), _answered, "prompt or conversations, chosen"),
    Shape("messages", (("messages",),), Reading.messages, "messages: [{role, content}, …]", instead=SHAREGPT),
    Shape("sharegpt", (SHAREGPT,), Reading.messages, "conversations: [{from, value}, …]"),
    Shape(
        "alpaca", (("instruction",), ("output",)), _alpaca, "instruction, input, output", ("input", "history", "system")
    ),
    Shape("completion", (("prompt",), ("completion",)), _answered, "prompt, completion"),
    Shape("text", (("text",),), _text, "text: a conversation in ChatML"),
)
"""The first that fits is taken: a preference set often carries `messages` of both answers besides."""

KNOWN = "; ".join(f"{shape.name} ({shape.example})" for shape in SHAPES)


def shape_for(columns: Collection[str]) -> Shape | None:
    """The shape that columns fit."""
    return next((shape for shape in SHAPES if shape.fits(columns)), None)


def detect(columns: Collection[str], where: str, rows: Sequence[Json] = ()) -> Shape:
    """The shape that a dataset's columns fit. UserError, naming columns and shapes, where none does.

    A label that is a class (something but true, false, 1 and 0) in one of the first rows is no mark in any.
    """
    if shape := shape_for(columns):
        marks = [name for name in LABELS if all(str(row.get(name)).lower() in SAID for row in rows)]
        return replace(shape, labels=tuple(marks))
    more = len(columns) - SHOWN_COLUMNS
    named = ", ".join(islice(columns, SHOWN_COLUMNS)) + (f" and {more} more" if more > 0 else "")
    raise UserError(
        f"The dataset {where} has the columns {named or '(none)'}, which fit none of the six shapes: "
        f"{KNOWN}. Rename its columns, or take it out of `datasets`."
    )


Row = tuple[list[Turn] | Malformed, list[str]]
"""A row's messages, or why it cannot be read, and the keys that held text which is no part of them."""


def read_rows(table: pa.Table, shape: Shape) -> list[Row]:
    """Each row of a batch. Accepts a table with the shape's columns, or one of JSON lines."""
    if LINE in table.column_names:
        return [_read(shape, line, parse_line) for line in table[LINE].to_pylist()]
    used = [name for name in shape.known if name in table.column_names]
    if not {*MEDIA} & {*table.column_names} and (fast := _role_and_content(table.select(used))):
        others = table.drop_columns(used).to_pylist() or [{}] * len(fast)
        return [
            (turns, [name for name in row if holds_text(row[name])]) for turns, row in zip(fast, others, strict=True)
        ]
    kind = pa.struct(table.schema)
    load = partial(_loaded, kind) if "arrow.json" in str(kind) else dict
    try:
        return [_read(shape, row, load) for row in table.to_pylist()]
    except UnicodeDecodeError:  # nobody checks the bytes that Parquet calls text
        return [_read(shape, row, lambda n: load(table.slice(n, 1).to_pylist()[0])) for row in range(table.num_rows)]


def _loaded(kind: pa.DataType, value: Any) -> Any:
    """A value of an Arrow type, with what is JSON in it decoded (`datasets` makes JSON of unlike messages)."""
    if isinstance(kind, pa.JsonType):
        return decoded(value, "what its column calls JSON")
    if isinstance(value, list):
        return [_loaded(kind.value_type, item) for item in value]
    if isinstance(value, dict):
        return {field.name: _loaded(field.type, value[field.name]) for field in kind}
    return value


def parse_line(line: bytes) -> Json:
    """One line of a JSONL file: an object, or a list of messages. Malformed where it is no such JSON in UTF-8."""
    try:
        text = line.decode("utf-8-sig")
        value = load_json(text)
    except UnicodeDecodeError:
        raise Malformed("the line is no UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the line is no JSON: {error}") from None
    if LISTED.fullmatch(text):
        return {"messages": value}
    if not isinstance(value, dict):
        raise Malformed(f"the line holds no JSON object but a value of type {type(value).__name__}")
    return value


UNREADABLE = {
    UnicodeEncodeError: "a message holds half a surrogate pair, which is no valid Unicode",
    UnicodeDecodeError: "the row is no UTF-8",
    RecursionError: "a message is nested too deeply",
}


def _read(shape: Shape, row: Any, load: Callable[[Any], Json]) -> Row:
    reading = Reading()
    found: list[Turn] | Malformed
    try:
        row = load(row)
        used = [next(filter(row.get, (*group, *shape.instead)), group[0]) for group in shape.columns]
        reading.beside(row, (*used, *shape.optional), "")
        if off := unlearnt(row, (*MARKS, *shape.labels), "the row"):
            raise Malformed(f"its {off}", REJECTED)
        found = shape.read(reading, *[row[name] for name in used], *map(row.get, shape.optional))
        for role, text in found:
            if role == "tool":
                raise Malformed("a message is what a tool answered", TOOL_USE)
            if role != "system":
                refuse_template(text)
            if not (text.isascii() and role.isascii()):
                (role + text).encode()  # half a surrogate pair, as JSON can spell it, is no text
        if any(map(row.get, MEDIA)) and (place := PLACE.search(" ".join(text for _, text in found))):
            raise Malformed(f"{place[0]} in a text stands for what is no text", NOT_TEXT)
    except (UnicodeError, RecursionError) as error:
        found = Malformed(UNREADABLE[type(error)])
    except KeyError as error:
        found = Malformed(f"the column {error} is missing")
    except Malformed as error:
        found = error
    return found, list(reading.unread)


def _role_and_content(table: pa.Table) -> list[list[Turn]] | None:
    """The common case, list<struct<string, string>>, read column by column (five times as fast); None for any other."""
    column = table[0].combine_chunks()
    if len(table.column_names) > 1 or not pa.types.is_list(column.type) or column.null_count:
        return None
    items = column.flatten()
    if not pa.types.is_struct(items.type) or items.null_count:
        return None
    texts = {field.name if field.type in (pa.string(), pa.large_string()) else "" for field in items.type}
    names = next((pair for pair in product(ROLE_KEYS, TEXT_KEYS) if texts == {*pair}), None)
    if names is None:
        return None
    try:
        roles, said = (items.field(name).to_pylist() for name in names)
        if any_marked(items.field(names[1])):
            return None
    except UnicodeDecodeError:
        return None
    known = {role: role and role_of(role) for role in set(roles)}
    if None in known or "tool" in known.values():
        return None
    turns = iter([(known[role], text or "") for role, text in zip(roles, said, strict=True)])
    return [list(islice(turns, length)) for length in column.value_lengths().to_pylist()]
