"""Saved conversations: JSON files that a person can read, edit and load again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from nbutils.core.chat_engine.reply import Count, Measured
from nbutils.core.errors import UserError
from nbutils.core.files import Json, resolve, shown, write_json

SCHEMA = 1


def whole_characters(text: Any) -> Any:
    """A text with a question mark for each half of a surrogate pair, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else text


class Message(BaseModel):
    """One message, and of a reply what it cost."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, BeforeValidator(whole_characters)]
    measured: Measured | None = None


class Transcript(BaseModel):
    """A conversation as `ChatSession.transcript` gives it; anything else may be saved with it."""

    model_config = ConfigDict(strict=True, extra="allow")

    form: Annotated[int, Field(alias="schema", le=SCHEMA)] = SCHEMA
    model: str = ""
    messages: list[Message]
    compared: list[Transcript] = []
    turns_dropped: Count = 0
    dropped_before_last: Count = 0
    replies_started: Count = 0
    context_limit: Count = 0

    @model_validator(mode="after")
    def _takes_turns(self) -> Transcript:
        roles = [message.role for message in self.messages]
        spoken = roles[1:] if roles[:1] == ["system"] else roles
        if spoken != ["user", "assistant"] * (len(spoken) // 2):
            raise ValueError("the messages do not alternate between user and assistant, ending with the assistant")
        if self.turns_dropped > len(spoken) // 2:
            raise ValueError(f"turns_dropped is {self.turns_dropped}, but it has {len(spoken) // 2} turns")
        return self


def checked_transcript(value: Any, where: str) -> Transcript:
    """A transcript that a session can take over: a value, or the content of a file; `where` names it in errors.

    UserError for what is no JSON, a newer schema, messages that do not alternate, and counts that do not fit them.
    """
    check = Transcript.model_validate_json if isinstance(value, bytes) else Transcript.model_validate
    try:
        return check(value)
    except ValidationError as error:
        detail = error.errors()[0]
    if detail["type"] == "less_than_equal":
        raise UserError(f"{where} was written by a newer smallchat; update smallchat.")
    name = ".".join(map(str, detail["loc"]))
    found = f"{name} is {detail['input']!r:.100}, " if name else ""
    raise UserError(
        f"{where} is no transcript: {found}{detail['msg'].removeprefix('Value error, ')}; mend it, or give a file that "
        "was saved here."
    )


def read_transcript(path: str | Path) -> Transcript:
    """A saved transcript, checked. UserError where the file is missing, no JSON, or no transcript."""
    source = resolve(path)
    if not source.is_file():
        raise UserError(f"There is no transcript {shown(source)}; give the path of a saved one.")
    return checked_transcript(source.read_bytes(), shown(source))


def write_transcript(path: str | Path, transcript: Json) -> Path:
    """Writes a transcript atomically and returns its absolute path. UserError where it can't be written."""
    with _writing(path) as target:
        write_json(target, transcript)
    return target


def check_writable(path: str | Path) -> None:
    """UserError where a transcript could not be written to that path: to be found out before a conversation."""
    with _writing(path) as target:
        if target.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=target.parent):
            pass


@contextmanager
def _writing(path: str | Path) -> Iterator[Path]:
    target = resolve(path)
    try:
        yield target
    except OSError as error:
        raise UserError(
            f"The transcript cannot be written to {shown(target)} ({error.strerror or error}): give another path."
        ) from None
