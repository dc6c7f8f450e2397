"""A conversation whose user is a list of messages: what notebook 05 plays when nobody is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbutils.chat.models import LoadedModel
from nbutils.chat.session import ChatSession
from nbutils.chat.transcript import write_transcript


def play(loaded: LoadedModel, messages: Sequence[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Sends each message and waits for the reply; returns the transcript with the model's name.

    `timings` has for each reply the seconds to its first token, its tokens, the tokens per second behind the first, and
    what ended it.
    """
    session = ChatSession(loaded.model, loaded.tokenizer, read_ahead=False, **settings)  # nobody pauses to read
    timings = []
    for message in messages:
        for _ in session.reply(message):
            pass
        cost = session.measured
        timings.append(
            {
                "time_to_first_token": cost.seconds_to_first_token,
                "tokens": cost.new_tokens,
                "tokens_per_second": cost.tokens_per_second,
                "ended": cost.ended,
            }
        )
    session.close()
    return {"model": loaded.name, "device": loaded.line, **session.transcript(), "timings": timings}


def save(transcripts: Sequence[dict[str, Any]], path: Path) -> Path:
    """Writes the first conversation as the transcript, the others under `compared`."""
    first, *others = transcripts
    return write_transcript(path, first | {"compared": others})


def ask(
    loaded: LoadedModel, message: str, variants: dict[str, dict[str, Any]], settings: dict[str, Any]
) -> dict[str, str]:
    """The reply to one message under each variant of the settings, by the variants' names; each in a new session."""
    return {
        name: play(loaded, [message], settings | changes)["messages"][-1]["content"]
        for name, changes in variants.items()
    }
