"""Saved conversations: JSON files that a person can read, edit and load again."""

from __future__ import annotations

import json
from dataclasses import fields
from errno import EISDIR
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import resolve, shown, write_json
from nbutils.core.session import ENDINGS, Measured

SCHEMA = 1
ROLES = ("system", "user", "assistant")
LARGEST = 2**63
"""No count of tokens, and no number of seconds, is as large."""
COUNTS = ("turns_dropped", "dropped_before_last", "replies_started", "context_limit")
"""Whole numbers beside the messages, 0 where they are missing (see `ChatSession.transcript`)."""


def write_transcript(path: str | Path, transcript: dict[str, Any]) -> Path:
    """Writes a transcript atomically and returns its absolute path. UserError where it can't be written."""
    target = resolve(path)
    try:
        write_json(target, {"schema": SCHEMA, **transcript})
    except OSError as error:
        raise _unwritable(target, error) from None
    return target


def check_writable(path: str | Path) -> None:
    """UserError where a transcript could not be written to that path: to be found out before a conversation."""
    target = resolve(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise _unwritable(target, error) from None


def read_transcript(path: str | Path) -> dict[str, Any]:
    """A saved transcript, checked. UserError where the file is missing, no JSON, or no transcript."""
    source = resolve(path)
    if not source.is_file():
        raise UserError(f"There is no transcript {shown(source)}; give the path of a saved one.")
    return parsed_transcript(source.read_bytes(), shown(source))


def parsed_transcript(content: bytes, where: str) -> dict[str, Any]:
    """The transcript in a file's content, checked. UserError for what is no JSON, or no transcript."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where} is no transcript, since it is no JSON ({error}); give a file that was saved here."
        ) from error
    return checked_transcript(value, where)


def checked_transcript(value: Any, where: str) -> dict[str, Any]:
    """A transcript that a session can take over, wherever it comes from; `where` names it in errors.

    UserError for a newer schema, for messages that do not alternate, and for counts that do not fit them. What a reply
    is said to have cost is left out where it makes no sense: it is only ever shown.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where} holds no transcript; give a file that was saved here.")
    if _count(value, "schema", where) > SCHEMA:
        raise UserError(f"{where} was written by a newer smallchat; update smallchat.")
    messages = _messages(value.get("messages"), where)
    counts = {name: _count(value, name, where) for name in COUNTS}
    turns = sum(message["role"] == "user" for message in messages)
    if counts["turns_dropped"] > turns:
        raise UserError(
            f"turns_dropped of {where} is {counts['turns_dropped']}, but it has {turns} turns; mend it, or take it out."
        )
    return value | counts | {"messages": messages}


def spoken(transcript: dict[str, Any]) -> dict[str, Any]:
    """A transcript without its system message, where the settings of whoever takes it over give one."""
    return transcript | {"messages": [m for m in transcript["messages"] if m["role"] != "system"]}


def whole_characters(text: str) -> str:
    """The text with a question mark for each half of a surrogate pair, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _unwritable(target: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"The transcript cannot be written to {shown(target)} ({reason}): give another path.")


def _messages(messages: Any, where: str) -> list[dict[str, Any]]:
    """The messages, checked: system first if at all, then user and assistant by turns."""
    if not isinstance(messages, list):
        raise UserError(f"{where} has no list of messages; give a transcript that was saved here.")
    for number, message in enumerate(messages, 1):
        sound = isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), str)
        if not sound:
            raise UserError(f"Message {number} of {where} needs a role ({', '.join(ROLES)}) and a text as content.")
    spoken = [m["role"] for m in messages[1:] if m["role"] == "system"]
    by_turns = [m["role"] for m in messages if m["role"] != "system"]
    if spoken or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(by_turns)) or len(by_turns) % 2:
        raise UserError(
            f"The messages of {where} do not alternate between user and assistant, ending with the assistant; mend it."
        )
    return [_message(message) for message in messages]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    taken = message | {"content": whole_characters(message["content"])}
    if not _is_measured(taken.get("measured")):
        taken.pop("measured", None)
    return taken


def _is_measured(value: Any) -> bool:
    """Whether a value is a `Measured` as JSON."""
    if not isinstance(value, dict) or value.keys() != {field.name for field in fields(Measured)}:
        return False
    numbers = [value[name] for name in ("read_tokens", "reused_tokens", "new_tokens", "seconds")]
    if value["seconds_to_first_token"] is not None:
        numbers.append(value["seconds_to_first_token"])
    return value["ended"] in ENDINGS and all(_is_number(number) for number in numbers)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < LARGEST


def _count(transcript: dict[str, Any], name: str, where: str) -> int:
    value = transcript.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"{name} of {where} is {value!r}; it has to be a whole number, 0 or more.")
    return value
