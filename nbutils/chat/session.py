"""A chat as plain Python: turns, editing, stopping, what the context holds, and the transcript.

The notebook's widget and the terminal are two thin views of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbutils.chat.transcript import Transcript, checked_transcript, read_transcript, whole_characters, write_transcript
from nbutils.core.chat_engine.engine import Engine, Measured, streamed
from nbutils.core.chat_engine.sampling import Sampling
from nbutils.core.chat_engine.window import Plan
from nbutils.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


BUSY = "A reply is being written; stop it first."


@dataclass(frozen=True)
class Bookmark:
    """Where a conversation is: its messages, the turns that are no longer read, and the plan of the last reply."""

    messages: list[dict[str, Any]]
    dropped: int = 0
    dropped_before: int = 0  # before the last message, which another text or setting may take the place of
    replies: int = 0
    plan: Plan | None = None


@dataclass(frozen=True)
class Context:
    """What the model still reads: tokens used of the limit, turns dropped, and how many would go next.

    `fixed` of the tokens used are always read (a system message, the header of a reply); `room` is what history and a
    new message may take before the oldest turns go.
    """

    used: int
    limit: int
    fixed: int
    room: int
    dropped: int
    next_dropped: int
    extended: bool

    @property
    def nearly_full(self) -> bool:
        """Whether the window is so full that it is worth saying which turns go next."""
        return self.next_dropped > 0 and self.used - self.fixed > 0.75 * self.room


class ChatSession:
    """A conversation with one model; replies stream, and only what is new is read.

    Settings: `context_extension` (see `Engine`), `system` (a system message that is never dropped), `read_ahead`
    (whether a background thread re-reads history when the window is about to roll), and those of `Sampling`;
    `sampling` may be set at any time and counts from the next reply on. `reply`, `regenerate` and `edit` check their
    input at once (UserError) and return an iterator; the conversation changes as that is read. `stop` may be called
    from any thread.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        context_extension: str = "dynamic",
        system: str = "",
        read_ahead: bool = True,
        **sampling: Any,
    ) -> None:
        self.engine = Engine(model, tokenizer, context_extension)
        self.sampling = Sampling(**sampling)
        self.engine.window(self.sampling)  # refuses a reply that is too long
        self.read_ahead = read_ahead
        self.measured = Measured()  # of the last reply
        self._system = [{"role": "system", "content": system.strip()}] if system.strip() else []
        self._at = Bookmark(list(self._system))
        self._stop = threading.Event()
        self._busy = threading.Lock()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation so far, dropped turns and a reply in the making included."""
        return [{"role": m["role"], "content": m["content"]} for m in self._at.messages]

    @property
    def plan(self) -> Plan | None:
        """What the model read for the last reply; None before the first."""
        return self._at.plan

    @property
    def busy(self) -> bool:
        """Whether a reply is being written."""
        return self._busy.locked()

    @property
    def context(self) -> Context:
        """Tokens used by what the model reads (a reply in the making included), the limit, and the turns dropped."""
        at, limit, window = self._at, self.engine.limit, self.engine.window(self.sampling)
        sizes = self.engine.sizes(at.messages)
        return Context(
            used=min(sizes.used(at.dropped), limit) if len(at.messages) > len(self._system) else 0,
            limit=limit,
            fixed=sizes.fixed,
            room=max(0, window.room - sizes.fixed),
            dropped=at.dropped,
            next_dropped=window.after_eviction(sizes, at.dropped) - at.dropped,
            extended=at.plan is not None and at.plan.extended,
        )

    def reply(self, text: str) -> Iterator[str]:
        """The assistant's reply to a new message, piece by piece.

        MessageTooLongError (with size and room) where the message cannot fit; UserError for an empty one, or while
        another reply is being written.
        """
        return self._start([*self._at.messages, _said(text)], self._at.dropped)

    def regenerate(self) -> Iterator[str]:
        """Another reply to the last message, in place of the one that is there; that stays if it is stopped at once."""
        return self._start(self._at.messages[: self._last_user() + 1], self._at.dropped_before, again=True)

    def edit(self, text: str) -> Iterator[str]:
        """Replaces the last message that the user sent, and its reply by a new one."""
        return self._start([*self._at.messages[: self._last_user()], _said(text)], self._at.dropped_before)

    def stop(self) -> None:
        """Ends the reply being written after its current token; what is there stays."""
        self._stop.set()

    def clear(self) -> None:
        """Forgets the conversation. UserError while a reply is being written."""
        self._begin_at(Bookmark(list(self._system)))  # the same seed makes the same chat again

    def bookmark(self) -> Bookmark:
        """Where the conversation is, for `go_back`."""
        return self._at

    def go_back(self, mark: Bookmark) -> None:
        """Makes the conversation what it was at a bookmark. UserError while a reply is being written."""
        self._check_idle()
        self._at = mark
        self._prepare()

    def close(self) -> None:
        """Stops a reply and the background reading, and frees the caches."""
        self.stop()
        self.engine.pause()
        if not self.busy:
            self.engine.forget()

    def transcript(self, *, own_system: bool = True) -> dict[str, Any]:
        """The conversation with settings and, under each reply, what it cost: a JSON value that `restore` takes.

        Without `own_system` the system message that this session was given is left out.
        `turns_dropped` are those that the model no longer reads, `dropped_before_last` how many they were before the
        last message; both hold for a context of `context_limit` tokens.
        """
        return {
            "settings": {"context_extension": self.engine.extension, **self.sampling.model_dump()},
            "context_limit": self.engine.limit,
            "turns_dropped": self._at.dropped,
            "dropped_before_last": self._at.dropped_before,
            "replies_started": self._at.replies,
            "messages": [dict(m) for m in self._at.messages[0 if own_system else len(self._system) :]],
        }

    def restore(self, transcript: dict[str, Any] | Transcript) -> None:
        """Takes over the conversation of a transcript; this session's own settings stay, its system message included.

        Turns dropped for a context of another length are read again as far as they fit this one. UserError where it is
        no transcript, or another reply is being written.
        """
        self._check_idle()
        taken = checked_transcript(transcript, "the transcript")
        messages = [*self._system, *taken.talk(system=not self._system)]
        sizes, limit = self.engine.sizes(messages), self.engine.limit
        same = taken.context_limit == limit
        dropped = taken.turns_dropped if same else 0
        if sizes.used(dropped) > limit:
            dropped = self.engine.window(self.sampling).after_eviction(sizes, dropped)
        before = min(dropped, taken.dropped_before_last) if same else 0
        self._begin_at(Bookmark(messages, dropped, before, taken.replies_started))
        self._prepare()

    def save(self, path: str | Path) -> Path:
        """Writes the transcript as JSON, atomically; a relative path starts at the project root."""
        return write_transcript(path, self.transcript())

    def load(self, path: str | Path) -> None:
        """Takes over a saved conversation. UserError where the file is missing or no transcript."""
        self.restore(read_transcript(path))

    def _start(self, messages: list[dict[str, Any]], dropped: int, *, again: bool = False) -> Iterator[str]:
        """Writes the reply into the conversation as it is read; on an error the conversation is as it was before."""
        self._check_idle()
        sampling = self.sampling  # the plan is made for it: what is changed meanwhile counts from the next reply on
        plan = self.engine.plan(messages, dropped, sampling)
        self._stop.clear()

        def pieces() -> Iterator[str]:
            if not self._busy.acquire(blocking=False):
                raise UserError(BUSY)
            before, measured = self._at, Measured()
            answer: dict[str, Any] = {"role": "assistant", "content": ""}
            try:
                self._at = Bookmark([*messages, answer], plan.dropped, dropped, before.replies + 1, plan)
                generator = sampling.generator(before.replies)
                tokens = self.engine.generate(messages, plan, sampling, generator, self._stop.is_set, measured)
                for piece in streamed(self.engine.tokenizer, tokens):
                    answer["content"] += piece
                    yield piece
            except GeneratorExit:  # the reader has gone: as if stopped
                pass
            except BaseException:
                self._at = before
                raise
            finally:
                answer["measured"] = measured.model_dump()
                self.measured = measured
                if again and not measured.new_tokens:
                    self._at = before
                self._busy.release()
            self._prepare()

        return pieces()

    def _begin_at(self, mark: Bookmark) -> None:
        self._check_idle()
        self.engine.forget()
        self._at = mark
        self.measured = Measured()

    def _prepare(self) -> None:
        if self.read_ahead:
            self.engine.prepare(self._at.messages, self._at.dropped, self.sampling)

    def _last_user(self) -> int:
        users = [i for i, m in enumerate(self._at.messages) if m["role"] == "user"]
        if not users:
            raise UserError("There is no message yet; send one first.")
        return users[-1]

    def _check_idle(self) -> None:
        if self.busy:
            raise UserError(BUSY)


def _said(text: str) -> dict[str, Any]:
    """A user's message. UserError for an empty one."""
    text = whole_characters(text.strip())
    if not text:
        raise UserError("The message is empty; type something.")
    return {"role": "user", "content": text}
