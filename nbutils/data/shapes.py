"""The six shapes that conversation datasets come in, and reading a row of each as (role, text) messages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbutils.core.chatml import CHATML, IM_START
from nbutils.core.errors import UserError
from nbutils.data.fates import REJECTED, Turn
from nbutils.data.messages import (
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
    listed,
    role_of,
    unlearnt,
)

LINE = "__line"
"""Column of raw text lines, each a JSON object, for files that are read line by line."""
LABELS = ("label", "kto_tag")
"""Columns that say with `false` or 0 that a row shows what is not to be learnt, unless they hold names or numbers."""

TEMPLATES = {
    "<|start_header_id|>": "Llama 3",
    "<|begin_of_text|>": "Llama 3",
    "[INST]": "Mistral or Llama 2",
    "<start_of_turn>": "Gemma",
    "<|user|>": "Zephyr or Phi 3",
    "<|system|>": "Zephyr or Phi 3",
    "### Instruction:": "Alpaca",
    "Below is an instruction": "Alpaca",
    "### Human:": "Vicuna",
    "### User:": "Vicuna",
    "<｜User｜>": "DeepSeek",
    "<|start|>": "Harmony",
    "A chat between a curious": "Vicuna",
    "Human:": "HH-RLHF",
    IM_START: "ChatML",
}
"""What a text begins with that was written with a template already."""
BEGINS = re.compile(rf"^\s*(?:<s>|<bos>)?\s*({'|'.join(map(re.escape, TEMPLATES))})")
WHOLE = {"Human:": re.compile(r"\n\nAssistant:").search, IM_START: CHATML.parse}
"""What tells a text with a template from one that only begins as such a text does."""


@dataclass(frozen=True)
class Shape:
    """One way to write a conversation in columns: which must be there, which may be, and how to read a row."""

    name: str
    columns: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...]
    read: Callable[[Reading, Mapping[str, Any]], list[Turn]]
    example: str
    labels: tuple[str, ...] = LABELS

    def fits(self, columns: Collection[str]) -> bool:
        """Whether one of the needed columns of each group is there."""
        return all(any(name in columns for name in group) for group in self.columns)

    @property
    def known(self) -> tuple[str, ...]:
        """All columns that it has a use for."""
        return (*(name for group in self.columns for name in group), *self.optional, *MARKS, *self.labels)


def _messages(reading: Reading, row: Mapping[str, Any]) -> list[Turn]:
    name = next((name for name in ("messages", "conversations", "conversation") if name in row), "messages")
    return reading.messages(row[name])


def _alpaca(reading: Reading, row: Mapping[str, Any]) -> list[Turn]:
    system = reading.text(row.get("system"))
    turns = [("system", system)] if system else []
    history = row.get("history")
    history = [] if absent(history) or history == "" else decoded(history, "`history`")
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        raise Malformed("`history` holds something else than pairs of question and answer")
    for asked, answered in history:
        turns += [("user", reading.text(asked)), ("assistant", reading.text(answered))]
    parts = [text for text in (reading.text(row["instruction"]), reading.text(row.get("input"))) if text.strip()]
    asked = "\n\n".join(map(str.strip, parts)) if len(parts) > 1 else "".join(parts)  # it may end in an open header
    return _plain([*turns, ("user", asked), ("assistant", reading.text(row["output"]))])


def _side(reading: Reading, value: Any, role: str) -> list[Turn]:
    """One side of a prompt/completion or preference row: messages, one message, or the text of one."""
    value = listed(value)
    if isinstance(value, Mapping) and any(isinstance(value.get(key), str) for key in ROLE_KEYS):
        return [reading.message(value)]
    return reading.messages(value) if isinstance(value, list | Mapping) else [(role, reading.text(value))]


def _completion(reading: Reading, row: Mapping[str, Any]) -> list[Turn]:
    return _answered(reading, row["prompt"], row["completion"])


def _preference(reading: Reading, row: Mapping[str, Any]) -> list[Turn]:
    return _answered(reading, row["prompt"] if "prompt" in row else row["conversations"], row["chosen"])


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
    return _plain(asked + answer)


def _plain(turns: list[Turn]) -> list[Turn]:
    """The turns, or the messages that their texts are once more, where these were written with a template already."""
    messages = _rendered("".join(text for role, text in turns if role != "system"))
    if {"user", "assistant"} <= {role for role, _ in messages}:
        return [turn for turn in turns if turn[0] == "system"] + messages
    return turns


def _text(reading: Reading, row: Mapping[str, Any]) -> list[Turn]:
    text = reading.text(row["text"]).strip()
    messages = _rendered(text)
    if text and not messages:
        _refuse_template(text, STOP)
        raise Malformed(
            f"its `text` is plain text ({text[:40]!r}), which does not say who asks and who answers; give one of the "
            f"shapes {KNOWN}",
            STOP,
        )
    return messages


def _rendered(text: str) -> list[Turn]:
    """The messages of a text that was written with ChatML, also between other marks of an end; none of any other."""
    text = text.strip().removeprefix("<s>").removesuffix("</s>").removesuffix("<|endoftext|>").strip()
    return [(role_of(role), said) for role, said in CHATML.parse(text)]


def _refuse_template(text: str, *fate: str) -> None:
    if (begins := BEGINS.match(text)) and WHOLE.get(mark := begins[1], bool)(text):
        raise Malformed(
            f"its text was written with the template of {TEMPLATES[mark]} already (it has {mark!r}), which would be "
            "learnt as ordinary characters; give the text alone, or messages",
            *fate,
        )


SHAPES = (
    Shape("preference", (("prompt", "conversations"), ("chosen",)), (), _preference, "prompt or conversations, chosen"),
    Shape("messages", (("messages",),), (), _messages, "messages: [{role, content}, …]"),
    Shape("sharegpt", (("conversations", "conversation"),), (), _messages, "conversations: [{from, value}, …]"),
    Shape(
        "alpaca", (("instruction",), ("output",)), ("input", "history", "system"), _alpaca, "instruction, input, output"
    ),
    Shape("completion", (("prompt",), ("completion",)), (), _completion, "prompt, completion"),
    Shape("text", (("text",),), (), _text, "text: a conversation in ChatML"),
)
"""The first that fits is taken: a preference set often carries `messages` of both answers besides."""

KNOWN = "; ".join(f"{shape.name} ({shape.example})" for shape in SHAPES)


def shape_for(columns: Collection[str]) -> Shape | None:
    """The shape that columns fit."""
    return next((shape for shape in SHAPES if shape.fits(columns)), None)


def detect(columns: Collection[str], where: str, rows: Iterable[Mapping[str, Any]] = ()) -> Shape:
    """The shape that a dataset's columns fit. UserError, naming columns and shapes, where none does.

    A label that is a class (something but true, false, 1 and 0) in one of the first rows is no mark in any.
    """
    if shape := shape_for(columns):
        classes = {name for row in rows for name in LABELS if str(row.get(name)).lower() not in SAID}
        return replace(shape, labels=tuple(name for name in LABELS if name not in classes))
    raise UserError(
        f"The dataset {where} has the columns {', '.join(columns) or '(none)'}, which fit none of the six shapes: "
        f"{KNOWN}. Rename its columns, or take it out of `datasets`."
    )


Row = tuple[list[Turn] | Malformed, list[str]]
"""A row's messages, or why it cannot be read, and the keys that held text which is no part of them."""


def read_rows(table: pa.Table, shape: Shape) -> list[Row]:
    """Each row of a batch. Accepts a table with the shape's columns, or one of JSON lines."""
    if LINE in table.column_names:
        return [_read(shape, line, parse_line) for line in table[LINE].to_pylist()]
    used = [name for name in shape.known if name in table.column_names]
    if fast := _role_and_content(table.select(used)):
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


UNREADABLE = {
    UnicodeEncodeError: "a message holds half a surrogate pair, which is no valid Unicode",
    UnicodeDecodeError: "the row is no UTF-8",
    RecursionError: "a message is nested too deeply",
}


def _read(shape: Shape, row: Any, load: Callable[[Any], Mapping[str, Any]]) -> Row:
    reading = Reading()
    found: list[Turn] | Malformed
    try:
        row = load(row)
        reading.beside(row, shape.known, "")
        if off := unlearnt(row, (*MARKS, *shape.labels), "the row"):
            raise Malformed(f"its {off}", REJECTED)
        found = shape.read(reading, row)
        for role, text in found:
            if role != "system":
                _refuse_template(text)
            if not (text.isascii() and role.isascii()):
                (role + text).encode()  # half a surrogate pair, as JSON can spell it, is no text
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
        if pc.any(pc.match_substring_regex(items.field(names[1]), BEGINS.pattern)).as_py():
            return None
    except UnicodeDecodeError:
        return None
    known = {role: role and role_of(role) for role in set(roles)}
    if None in known or "tool" in known.values():
        return None
    turns = iter([(known[role], text or "") for role, text in zip(roles, said, strict=True)])
    return [list(islice(turns, length)) for length in column.value_lengths().to_pylist()]
