"""Reading messages: who speaks, the text in any of its forms, marks on it, and what is beside it."""

from __future__ import annotations

import json
import math
import re
from ast import literal_eval
from collections.abc import Collection, Mapping
from contextlib import suppress
from itertools import zip_longest
from typing import Any

from nbutils.data.fates import MALFORMED, NOT_TEXT, TOOL_USE, Context, Turn

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
OTHER_PARTS = {
    TOOL_USE: ("tool_use", "tool_call", "tool_result", "function_call", "function_call_output"),
    NOT_TEXT: ("image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url", "file"),
}
"""Types of the parts of a message, as the chat interfaces of today call them."""
REASONING_PARTS = ("thinking", "redacted_thinking", "reasoning")
MARKS = ("weight", "train", "training", "trainable", "loss", "loss_mask", "loss_weight", "loss_scale", "train_detail")
"""Keys of a message, a part of one, or a row that say whether it is to be learnt."""
SAID = ("0", "0.0", "false", "1", "1.0", "true", "", "none", "nan")
"""What a mark may be, as text, which it is in a table: three ways to say that nothing is learnt, and to say nothing."""
_STRING = r"""(?:"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+')"""
LISTED = re.compile(
    r"""(?is)\s*\[\s*\{(?=.*["'](?:content|value|text)["']\s*:)"""
    rf"""(?:\s*{_STRING}\s*:\s*(?:{_STRING}|\[(?:{_STRING}|[^"'\[\]])*+\]|[^\s"'\[{{,]+)\s*,)*?"""
    r"""\s*["'](?:role|from|speaker)["']\s*:"""
    rf"""\s*["'](?:{"|".join(ROLES)})["'].*\}}\s*\]\s*"""
)
"""A list of messages as JSON, or as Python writes it, and nothing else."""
NO_TEXT = re.compile(r"(?i)[\d\s.,:+-]*|\[\]|true|false")
"""What a table has in columns of numbers, marks and empty lists."""
KNOWN = frozenset((*ROLE_KEYS, *TEXT_KEYS, *CALLS))

STOP = "stop"
"""In place of a fate: the row cannot be read as it was meant, and nor can others like it."""


class Malformed(ValueError):
    """A row that is not read as a conversation: the text says why, `fate` which reason to drop it that is."""

    def __init__(self, detail: str, fate: str = MALFORMED) -> None:
        super().__init__(detail)
        self.fate = fate


def absent(value: Any) -> bool:
    """Whether a key is there in name alone: null, or the NaN that pandas puts into gaps."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def holds_text(value: Any) -> bool:
    """Whether there is a text, or the bytes of a picture or sound, anywhere in a value."""
    if isinstance(value, Mapping | list | tuple):
        return any(map(holds_text, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, str | bytes) and not NO_TEXT.fullmatch(str(value))


def decoded(value: Any, what: str) -> Any:
    """The value itself, or what a string of JSON (or of Python, as pandas writes lists into a table) holds."""
    if not isinstance(value, str):
        return value
    for read in (load_json, literal_eval):
        with suppress(ValueError, SyntaxError):
            return read(value)
    raise Malformed(f"{what} is no JSON")


def printable(text: str) -> str:
    """A text in which half a surrogate pair, as JSON can spell it, is written out."""
    return text.encode(errors="backslashreplace").decode()


def _object(pairs: list[Any]) -> Any:
    if len(found := dict(pairs)) < len(pairs):
        raise Malformed(printable(f"an object has one of the keys {', '.join(found)} twice"))
    return found


load_json = json.JSONDecoder(object_pairs_hook=_object).decode
"""What a JSON text holds. ValueError where it is broken, or an object has a key twice."""


def unlearnt(found: Mapping[str, Any], names: Collection[str], what: str) -> str:
    """A mark by which something is not to be learnt, such as `weight is 0`, or nothing.

    Malformed (`STOP`) for a mark that says neither that it is learnt nor that it is not.
    """
    for name in filter(found.__contains__, names):
        if (said := str(found[name]).strip().lower()) not in SAID:
            raise Malformed(
                f"{what}'s {name} is {found[name]!r:.60}, but it is learnt wholly (1) or not at all (0); rename what "
                "means something else",
                STOP,
            )
        if said in SAID[:3]:
            return f"{name} is {said}"
    return ""


def role_of(name: str) -> str:
    """The role that a name stands for; a name that is none of ROLES stays as it is."""
    return ROLES.get(name.strip().lower(), name)


class Reading:
    """Reads the messages of one row; `unread` names the keys that held text which is no part of them."""

    def __init__(self) -> None:
        self.unread: dict[str, None] = {}

    def beside(self, found: Mapping[str, Any], known: Collection[str], where: str) -> None:
        """Notes the keys that are not known, but hold text."""
        keys = (key for key in found if key not in known and holds_text(found[key]))
        self.unread |= {printable(f"{where}{key}"): None for key in keys}

    def text(self, value: Any) -> str:
        """The text of a message: a string, nothing (empty), or a list of parts, each of which is text."""
        if isinstance(value, str):
            return value
        if absent(value):
            return ""
        if isinstance(value, list):
            return "".join(map(self.part, value))
        raise Malformed(f"a message's text is of type {type(value).__name__}")

    def part(self, part: Any) -> str:
        """The text of a part; what somebody only thought is none."""
        if isinstance(part, str):
            return part
        if not isinstance(part, Mapping):
            raise Malformed(f"a message's text is a list with a {type(part).__name__}")
        kind = part.get("type")
        if kind in REASONING_PARTS:
            self.beside(part, ("type",), f"message part {kind}: ")
            return ""
        if kind not in TEXT_PARTS:
            fates = [fate for fate, kinds in OTHER_PARTS.items() if kind in kinds]
            raise Malformed(f"a message holds a part of type {kind!r:.60}, which is no text", *fates)
        if unlearnt(part, MARKS, "a part of a message"):
            raise Malformed("a part of a message is marked not to be learnt; mark the whole message", STOP)
        self.beside(part, ("type", *TEXT_KEYS), "message part: ")
        return self.only(part)

    def only(self, found: Mapping[str, Any]) -> str:
        """The one text among empty ones, or none. Malformed where two differ."""
        texts = {text: None for key in TEXT_KEYS if (text := self.text(found.get(key)))}
        if len(texts) > 1:
            raise Malformed("a message, or a part of one, holds two different texts")
        return next(iter(texts), "")

    def messages(self, value: Any) -> list[Turn]:
        """A list of messages, also as a string of JSON, or where `datasets` turned it into a mapping of lists."""
        value = decoded(value, "the text in place of messages")
        if isinstance(value, Mapping):
            if {type(column) for column in value.values()} != {list}:
                raise Malformed("the messages are no list")
            value = [dict(zip(value, row, strict=True)) for row in zip_longest(*value.values())]
        if not isinstance(value, list):
            kind = "missing" if absent(value) else f"of type {type(value).__name__}"
            raise Malformed(f"the messages are {kind}")
        return [self.message(item) for item in value]

    def message(self, item: Any) -> Turn:
        """Role and text of one message."""
        if not isinstance(item, Mapping):
            raise Malformed(f"a message is of type {type(item).__name__}")
        if any(holds_text(item.get(key)) for key in CALLS):
            raise Malformed("a message calls a tool", TOOL_USE)
        names = [item[key] for key in ROLE_KEYS if not absent(item.get(key))]
        roles = {role_of(name) for name in names if isinstance(name, str)}
        if not roles:
            raise Malformed(f"a message has no role that is a text, but {names!r:.60}")
        if len(roles) > 1:
            raise Malformed("a message names two different roles")
        self.beside(item, KNOWN, "message: ")
        text = self.only(item)
        return (Context(*roles) if unlearnt(item, MARKS, "a message") else roles.pop()), text
