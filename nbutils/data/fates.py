"""What becomes of a raw row: kept, or dropped for exactly one reason, decided in a fixed order."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

KEPT = "kept"
MALFORMED = "malformed"
TOOL_USE = "tool_use"
NOT_TEXT = "not_text"
REJECTED = "rejected"
NO_USER_TURN = "no_user_turn"
NO_ASSISTANT_TURN = "no_assistant_turn"
BAD_ROLES = "bad_roles"
EMPTY_MESSAGE = "empty_message"
OUTSIDE_VOCABULARY = "outside_vocabulary"
TOO_LONG = "too_long"
DUPLICATE = "duplicate"
CONTAMINATED = "contaminated"
NEAR_DUPLICATE = "near_duplicate"

REASONS = {
    MALFORMED: "the row cannot be read as a conversation",
    TOOL_USE: "a message calls a tool, or is what a tool answered",
    NOT_TEXT: "a message holds an image, sound, video or file",
    REJECTED: "the data says that no answer in it is to be learnt",
    NO_USER_TURN: "nobody asks",
    NO_ASSISTANT_TURN: "nobody answers",
    BAD_ROLES: "turns do not alternate user and assistant",
    EMPTY_MESSAGE: "a turn has no text",
    OUTSIDE_VOCABULARY: "a character that the base's vocabulary has no piece for",
    TOO_LONG: "more tokens than max_length",
    DUPLICATE: "the same turns stand in an earlier row",
    CONTAMINATED: "shares words with an item of an evaluation task",
    NEAR_DUPLICATE: "repeats most of a held-out or an earlier conversation",
}
"""Reasons to drop a row, in the order in which they are looked for."""

FATES = (KEPT, *REASONS)

Turn = tuple[str, str]
"""(role, text)"""
FILLERS = "\u115f\u1160\u3164\uffa0"
"""Letters of Hangul that nobody sees."""


class Context(str):
    """The role of a message that is marked not to be learnt: it is read, and no loss is counted on it."""


@dataclass(frozen=True)
class Judged:
    """A conversation cleaned of system messages and half-finished exchanges, with its fate so far (or `kept`).

    `unread` are the keys of its row that held text which is no part of it.
    """

    turns: list[Turn]
    fate: str
    detail: str = ""
    lost_last_user_turn: bool = False
    unread: Sequence[str] = ()

    @cached_property
    def messages(self) -> list[dict[str, Any]]:
        """The turns as the messages that the rest of the project reads."""
        return as_messages(self.turns)


def as_messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Turns as the messages that the rest of the project reads."""
    return [
        {"role": str(role), "content": text, "learn": False}
        if isinstance(role, Context)
        else {"role": role, "content": text}
        for role, text in turns
    ]


def judge(messages: Sequence[Turn]) -> Judged:
    """Strips system messages, joins consecutive messages of one role, drops a last user turn, and checks the roles."""
    turns = joined(messages)
    roles = [role for role, _ in turns]
    if "user" not in roles:
        return Judged(turns, NO_USER_TURN)
    if "assistant" not in roles:
        return Judged(turns, NO_ASSISTANT_TURN)
    if others := sorted(set(roles) - {"user", "assistant"}):
        return Judged(turns, BAD_ROLES, f"unknown role {others[0]!r:.60}")
    if roles[0] != "user":  # joined turns of two roles alternate, so the first decides about all
        return Judged(turns, BAD_ROLES, "the assistant speaks first")
    if "assistant" in roles[::2] or "user" in roles[1::2]:
        return Judged(turns, BAD_ROLES, "of two turns of one role in a row, one is marked not to be learnt")
    lost = roles[-1] == "user"
    if lost:
        turns = turns[:-1]
    for number, (role, text) in enumerate(turns, 1):
        if unseen(text):
            return Judged(turns, EMPTY_MESSAGE, f"turn {number} ({role})", lost)
    if all(isinstance(role, Context) for role, _ in turns if role == "assistant"):
        return Judged(turns, REJECTED, "every answer is marked not to be learnt", lost)
    return Judged(turns, KEPT, lost_last_user_turn=lost)


def joined(messages: Sequence[Turn]) -> list[Turn]:
    """Messages without the system's, texts stripped, consecutive ones of one role joined by a newline."""
    turns: list[Turn] = []
    for role, text in messages:
        if role == "system":
            continue
        text = text.strip()
        if turns and turns[-1][0] == role and type(turns[-1][0]) is type(role):
            earlier = turns[-1][1]
            turns[-1] = (role, f"{earlier}\n{text}" if earlier and text else earlier or text)
        else:
            turns.append((role, text))
    return turns


def unseen(text: str) -> bool:
    """Whether nothing of a text can be seen: white space, marks of direction and joining, fillers."""
    return not text or not (text.isascii() or any(map(_shows, text)))


def _shows(character: str) -> bool:
    return not (character.isspace() or unicodedata.category(character) in ("Cc", "Cf") or character in FILLERS)


def conversation_hash(turns: Sequence[Turn]) -> str:
    """32 hex digits, equal for conversations that differ in nothing but Unicode form and white space.

    The form is NFC (2² is not 22). What is learnt in one and context in the other is not the same.
    """
    texts = [f"\uffff{text}" if isinstance(role, Context) else text for role, text in turns]  # no character of a text
    text = " \0 ".join(texts)
    if text.count("\0") >= len(turns):  # a text holds the separator itself
        text = " \0 ".join([text.replace("\0", "\0\0") for text in texts])
    return hashlib.blake2b(" ".join(words_as_spelled(text)).encode(), digest_size=16).hexdigest()


def words_as_spelled(text: str) -> list[str]:
    """What white space parts in normalisation form NFC."""
    return normalised(text, "NFC").split()


def opening_hash(turns: Sequence[Turn]) -> str:
    """The same of the first exchange, without marks and in form KC: what is nearly alike stays on one side."""
    return conversation_hash([("", normalised(text)) for _, text in turns[:2]])


def normalised(text: str, form: Literal["NFC", "NFKC"] = "NFKC") -> str:
    """A text in a Unicode normalisation form; plain ASCII is in both already."""
    return text if text.isascii() else unicodedata.normalize(form, text)


def side_of(opening: str, split_seed: int, eval_fraction: float) -> str:
    """`train` or `eval`, from the hash of the first exchange alone: rows that are added elsewhere never move it."""
    return "eval" if uniform(opening, split_seed) < eval_fraction else "train"


def uniform(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on the key and the seed alone."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, salt=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") / 2**64
