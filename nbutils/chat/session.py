"""A chat as plain Python: turns, editing, stopping, what the context holds, and the transcript.

The notebook's widget and the terminal are two thin views of it; `play` and `ask` talk to it where nobody is there.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbutils.chat.models import LoadedModel
from nbutils.chat.transcript import Message, Transcript, checked_transcript
from nbutils.core.chat_engine.base import BaseEngine, Request
from nbutils.core.chat_engine.engine import Engine
from nbutils.core.chat_engine.reply import Measured
from nbutils.core.chat_engine.sampling import Sampling
from nbutils.core.chat_engine.window import Plan
from nbutils.core.errors import UserError
from nbutils.core.files import Json
from nbutils.core.text import counted
from nbutils.core.vocabulary import readable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


BUSY = "A reply is being written; stop it first."


@dataclass(frozen=True)
class Context:
    """What the model still reads: tokens used of the limit, turns dropped, and how many go next, once that is sure."""

    used: int
    limit: int
    dropped: int
    next_dropped: int

    @property
    def summary(self) -> str:
        """Tokens used of the limit, what is gone and what goes next, in words."""
        words = [f"{self.used:,} of {self.limit:,} tokens"]
        if self.dropped:
            words.append(f"the first {counted(self.dropped, 'turn')} no longer read")
        if self.next_dropped:
            words.append(f"next to go: {counted(self.next_dropped, 'turn')}")
        return " · ".join(words)


class ChatSession:
    """A conversation with one model; replies stream, and only what is new is read.

    Settings: `engine` (what replies; it takes `model`), `context_extension` (see `Engine`), `system` (a system message
    that is never dropped), `read_ahead` (whether history is read again in pauses, and between tokens, before the window
    rolls), and those of `Sampling`; `sampling` may be set at any time and counts from the next reply on. `reply`,
    `regenerate` and `edit` check their input at once (UserError) and return an iterator; the conversation changes as
    that is read. `stop` may be called from any thread.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        engine: Callable[[Any, PreTrainedTokenizerBase, str], BaseEngine] = Engine,
        context_extension: str = "dynamic",
        system: str = "",
        read_ahead: bool = True,
        **sampling: Any,
    ) -> None:
        self.engine = engine(model, tokenizer, context_extension)
        self.sampling = Sampling(**sampling)
        self.engine.window(self.sampling)  # refuses a reply that is too long
        self.read_ahead = read_ahead
        self.measured = Measured()  # of the last reply
        self.plan: Plan | None = None  # what the model read for the last reply
        self._system = [Message(role="system", content=system.strip())] if system.strip() else []
        self._at = Transcript(messages=self._system)
        self._stop = threading.Event()
        self._busy = threading.Lock()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation so far, dropped turns and a reply in the making included."""
        return _as_read(self._at.messages)

    @property
    def busy(self) -> bool:
        """Whether a reply is being written."""
        return self._busy.locked()

    @property
    def context(self) -> Context:
        """Tokens used by what the model reads (a reply in the making included), the limit, and the turns dropped."""
        at, limit = self._at, self.engine.limit
        sizes = self.engine.sizes(_as_read(at.messages))
        coming = self.engine.window(self.sampling).coming(sizes, at.turns_dropped)
        return Context(
            used=min(sizes.used(at.turns_dropped), limit) if len(at.messages) > len(self._system) else 0,
            limit=limit,
            dropped=at.turns_dropped,
            next_dropped=coming.plan.dropped - at.turns_dropped if coming else 0,
        )

    def reply(self, text: str) -> Iterator[str]:
        """The assistant's reply to a new message, piece by piece.

        MessageTooLongError (with size and room) where the message cannot fit; UserError for an empty one, or while
        another reply is being written.
        """
        return self._start([*self._at.messages, _said(text)], self._at.turns_dropped)

    def regenerate(self) -> Iterator[str]:
        """Another reply to the last message, in place of the one that is there; that stays if it is stopped at once."""
        return self._start(self._at.messages[: self.last_user() + 1], self._at.dropped_before_last, again=True)

    def edit(self, text: str) -> Iterator[str]:
        """Replaces the last message that the user sent, and its reply by a new one."""
        return self._start([*self._at.messages[: self.last_user()], _said(text)], self._at.dropped_before_last)

    def stop(self) -> None:
        """Ends the reply being written after its current token; what is there stays."""
        self._stop.set()

    def clear(self) -> None:
        """Forgets the conversation; the same seed makes the same chat again. UserError while a reply is written."""
        self.restore({"messages": []})

    def close(self) -> None:
        """Stops a reply and the background reading, and frees the caches."""
        self.stop()
        self.engine.close()

    def last_user(self) -> int:
        """Where in the conversation the user's last message is. UserError where there is none."""
        users = [i for i, message in enumerate(self._at.messages) if message.role == "user"]
        if not users:
            raise UserError("There is no message yet; send one first.")
        return users[-1]

    def transcript(self) -> Json:
        """The conversation with settings and, under each reply, what it cost: a JSON value that `restore` takes.

        `turns_dropped` are those that the model no longer reads, `dropped_before_last` how many they were before the
        last message; both hold for a context of `context_limit` tokens.
        """
        settings = {"context_extension": self.engine.extension, **self.sampling.model_dump()}
        talk = self._at.model_dump(exclude={"model", "compared"}, exclude_none=True, by_alias=True)
        return {"settings": settings, **talk, "context_limit": self.engine.limit}

    def restore(self, transcript: Json | Transcript) -> None:
        """Takes over the conversation of a transcript; this session's own settings stay, its system message included.

        Turns dropped for a context of another length are read again as far as they fit this one. UserError where it is
        no transcript, or another reply is being written.
        """
        self._check_idle()
        taken = checked_transcript(transcript, "the transcript")
        spoken = (message for message in taken.messages if not self._system or message.role != "system")
        messages = [*self._system, *spoken]
        sizes, limit = self.engine.sizes(_as_read(messages)), self.engine.limit
        same = taken.context_limit == limit
        dropped = taken.turns_dropped if same else 0
        if sizes.used(dropped) > limit:
            dropped = self.engine.window(self.sampling).after_eviction(sizes, dropped)
        before = min(dropped, taken.dropped_before_last) if same else 0
        self.engine.forget()
        self._at = Transcript(
            messages=messages,
            turns_dropped=dropped,
            dropped_before_last=before,
            replies_started=taken.replies_started,
        )
        self.plan, self.measured = None, Measured()
        self._prepare()

    def _start(self, messages: list[Message], dropped: int, *, again: bool = False) -> Iterator[str]:
        """Writes the reply into the conversation as it is read; on an error the conversation is as it was before."""
        self._check_idle()
        sampling = self.sampling  # the plan is made for it: what is changed meanwhile counts from the next reply on
        read = _as_read(messages)
        plan = self.engine.plan(read, dropped, sampling)
        self._stop.clear()

        def pieces() -> Iterator[str]:
            if not self._busy.acquire(blocking=False):
                raise UserError(BUSY)
            at, before, measured = self._at, self.plan, Measured()
            answer = Message(role="assistant", content="")
            try:
                self._at = Transcript(
                    messages=[*messages, answer],
                    turns_dropped=plan.dropped,
                    dropped_before_last=dropped,
                    replies_started=at.replies_started + 1,
                )
                self.plan = plan
                generator = sampling.generator(at.replies_started)
                for piece in self.engine.write(
                    Request(read, plan, sampling, generator, self._stop.is_set, measured, self.read_ahead)
                ):
                    if written := readable(self.engine.tokenizer, piece):
                        answer.content += written
                        yield written
            except GeneratorExit:  # the reader has gone: as if stopped
                pass
            except BaseException:
                self._at, self.plan = at, before
                raise
            finally:
                answer.measured = self.measured = measured
                if again and not measured.new_tokens:
                    self._at, self.plan = at, before
                self._busy.release()
            self._prepare()

        return pieces()

    def _prepare(self) -> None:
        if self.read_ahead:
            self.engine.prepare(self.messages, self._at.turns_dropped, self.sampling)

    def _check_idle(self) -> None:
        if self.busy:
            raise UserError(BUSY)


def play(loaded: LoadedModel, messages: Sequence[str], settings: Json) -> Json:
    """Sends each message and waits for the reply; returns the transcript with the model's name.

    `timings` has for each reply the seconds to its first token, its tokens, the tokens per second behind the first, and
    what ended it.
    """
    session = ChatSession(loaded.model, loaded.tokenizer, read_ahead=False, **settings)  # nobody pauses to read
    timings = []
    for message in messages:
        deque(session.reply(message), maxlen=0)
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


def ask(loaded: LoadedModel, message: str, variants: dict[str, Json], settings: Json) -> dict[str, str]:
    """The reply to one message under each variant of the settings, by the variants' names; each in a new session."""
    return {
        name: play(loaded, [message], settings | changes)["messages"][-1]["content"]
        for name, changes in variants.items()
    }


def _as_read(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _said(text: str) -> Message:
    """A user's message. UserError for an empty one."""
    if not text.strip():
        raise UserError("The message is empty; type something.")
    return Message(role="user", content=text.strip())
