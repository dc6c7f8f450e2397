"""Saved conversations: JSON files that a person can read, edit and load again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, resolve, shown, write_json

SCHEMA = 1
ROLES = ("system", "user", "assistant")


def write_transcript(path: str | Path, transcript: dict[str, Any]) -> Path:
    """Writes a transcript atomically and returns its absolute path."""
    target = resolve(path)
    write_json(target, {"schema": SCHEMA, **transcript})
    return target


def read_transcript(path: str | Path) -> dict[str, Any]:
    """A saved transcript. UserError where the file is missing, no JSON, of a newer schema, or no conversation."""
    source = resolve(path)
    if not source.is_file():
        raise UserError(f"There is no transcript {shown(source)}; give the path of a saved one.")
    try:
        transcript = read_json(source)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{shown(source)} is no JSON file ({error}); give a transcript that was saved here.") from error
    if not isinstance(transcript, dict):
        raise UserError(f"{shown(source)} holds no transcript; give a file that was saved here.")
    if transcript.get("schema", 0) > SCHEMA:
        raise UserError(f"{shown(source)} was written by a newer smallchat; update smallchat.")
    check_messages(transcript.get("messages"), shown(source))
    return transcript


def check_messages(messages: Any, where: str) -> list[dict[str, Any]]:
    """The messages of a transcript, checked: system first if at all, then user and assistant by turns."""
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
    return [dict(message) for message in messages]
