"""A chat as plain Python: turns, editing, stopping, what the context holds, and the transcript.

The notebook's widget and the terminal are two thin views of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbutils.chat.extension import AUTO, DEFAULT
from nbutils.chat.transcript import checked_transcript, read_transcript, spoken, whole_characters, write_transcript
from nbutils.core.errors import UserError
from nbutils.core.sampling import Sampling
from nbutils.core.session import Engine, Measured
from nbutils.core.streaming import StreamDecoder
from nbutils.core.window import MessageTooLongError, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ChatSession", "Context", "MessageTooLongError"]


@dataclass(frozen=True)
class Bookmark:
    """Where a conversation stood: what `ChatSession.go_back` needs."""

    messages: list[dict[str, Any]]
    dropped: int
    dropped_before: int
    replies: int
    plan: Plan | None


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


class ChatSession:
    """A conversation with one model; replies stream, and only what is new is read.

    Settings: `context_extension` (see `nbutils.core.session.Engine`; `auto` is `dynamic` here, where no run is known),
    `system` (a system message that is never dropped), `read_ahead` (whether a background thread re-reads history when
    the window is about to roll), and those of `nbutils.core.sampling.Sampling`. `reply`, `regenerate` and `edit` check
    their input at once (UserError) and return an iterator; the conversation changes as that is read. `stop` may be
    called from any thread.
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
        self.engine = Engine(model, tokenizer, DEFAULT if context_extension == AUTO else context_extension)
        self.sampling = Sampling(**sampling)
        self.engine.window(self.sampling)
        self.read_ahead = read_ahead
        self.measured: Measured | None = None
        self._system = [{"role": "system", "content": system.strip()}] if system.strip() else []
        self._messages: list[dict[str, Any]] = list(self._system)
        self._dropped = 0
        self._dropped_before = 0  # before the last message, which another text or setting may take the place of
        self._replies = 0
        self._plan: Plan | None = None
        self._stop = threading.Event()
        self._busy = threading.Lock()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation so far, dropped turns and a reply in the making included."""
        return [{"role": m["role"], "content": m["content"]} for m in self._messages]

    @property
    def busy(self) -> bool:
        """Whether a reply is being written."""
        return self._busy.locked()

    @property
    def context(self) -> Context:
        """Tokens used by what the model reads (a reply in the making included), the limit, and the turns dropped."""
        window = self.engine.window(self.sampling)
        sizes = self.engine.sizes(self._messages)
        used = sizes.fixed + sum(sizes.turns[self._dropped :]) + sizes.newest
        after = window.after_eviction(sizes.fixed, sizes.turns, 0, self._dropped)
        return Context(
            used=min(used, self.engine.limit) if len(self._messages) > len(self._system) else 0,
            limit=self.engine.limit,
            fixed=sizes.fixed,
            room=max(0, window.room - sizes.fixed),
            dropped=self._dropped,
            next_dropped=after - self._dropped,
            extended=self._plan is not None and self._plan.extended,
        )

    def configure(self, **sampling: Any) -> None:
        """Changes sampling settings from the next reply on. UserError for values out of range."""
        changed = replace(self.sampling, **sampling)
        self.engine.window(changed)
        self.sampling = changed

    def reply(self, text: str) -> Iterator[str]:
        """The assistant's reply to a new message, piece by piece.

        MessageTooLongError (with size and room) where the message cannot fit; UserError for an empty one, or while
        another reply is being written.
        """
        return self._start([*self._messages, _said(text)], self._dropped)

    def regenerate(self) -> Iterator[str]:
        """Another reply to the last message, in place of the one that is there; that stays if it is stopped at once."""
        return self._start(self._messages[: self._last_user() + 1], self._dropped_before, again=True)

    def edit(self, text: str) -> Iterator[str]:
        """Replaces the last message that the user sent, and its reply by a new one."""
        return self._start([*self._messages[: self._last_user()], _said(text)], self._dropped_before)

    def stop(self) -> None:
        """Ends the reply being written after its current token; what is there stays."""
        self._stop.set()

    def clear(self) -> None:
        """Forgets the conversation. UserError while a reply is being written."""
        self._check_idle()
        self.engine.forget()
        self._stand(Bookmark(list(self._system), 0, 0, 0, None))  # the same seed makes the same chat again
        self.measured = None

    def bookmark(self) -> Bookmark:
        """Where the conversation stands, for `go_back`."""
        return Bookmark(self._messages, self._dropped, self._dropped_before, self._replies, self._plan)

    def go_back(self, mark: Bookmark) -> None:
        """Makes the conversation what it was at a bookmark. UserError while a reply is being written."""
        self._check_idle()
        self._stand(mark)
        self._prepare()

    def close(self) -> None:
        """Stops a reply and the background reading, and frees the caches."""
        self.stop()
        self.engine.pause()
        if not self.busy:
            self.engine.forget()

    def transcript(self) -> dict[str, Any]:
        """The conversation with settings and, under each reply, what it cost: a JSON value that `restore` takes.

        `turns_dropped` are those that the model no longer reads, `dropped_before_last` how many they were before the
        last message; both hold for a context of `context_limit` tokens.
        """
        return {
            "settings": {"context_extension": self.engine.extension, **asdict(self.sampling)},
            "context_limit": self.engine.limit,
            "turns_dropped": self._dropped,
            "dropped_before_last": self._dropped_before,
            "replies_started": self._replies,
            "messages": [dict(m) for m in self._messages],
        }

    def restore(self, transcript: dict[str, Any]) -> None:
        """Takes over the conversation of a transcript; this session's own settings stay, its system message included.

        Turns dropped for a context of another length are read again as far as they fit this one. UserError where it is
        no transcript, or another reply is being written.
        """
        self._check_idle()
        taken = checked_transcript(transcript, "the transcript")
        messages = [*self._system, *spoken(taken)["messages"]] if self._system else taken["messages"]
        same = taken["context_limit"] in (0, self.engine.limit)  # 0: an earlier smallchat did not say
        dropped = self._fitting(messages, taken["turns_dropped"] if same else 0)
        before = min(dropped, taken["dropped_before_last"]) if same else 0
        self.engine.forget()
        self._stand(Bookmark(messages, dropped, before, taken["replies_started"], None))
        self.measured = None
        self._prepare()

    def save(self, path: str | Path) -> Path:
        """Writes the transcript as JSON, atomically; a relative path starts at the project root."""
        return write_transcript(path, self.transcript())

    def load(self, path: str | Path) -> None:
        """Takes over a saved conversation. UserError where the file is missing or no transcript."""
        self.restore(read_transcript(path))

    def _start(self, messages: list[dict[str, Any]], dropped: int, *, again: bool = False) -> Iterator[str]:
        self._check_idle()
        sampling = self.sampling  # the plan is made for it: what is changed meanwhile counts from the next reply on
        plan = self.engine.plan(messages, dropped, sampling)
        self._stop.clear()
        return self._answer(messages, plan, sampling, dropped, again)

    def _answer(
        self, messages: list[dict[str, Any]], plan: Plan, sampling: Sampling, dropped_before: int, again: bool
    ) -> Iterator[str]:
        """Writes the reply into the conversation as it is read; on an error the conversation is as it was before."""
        if not self._busy.acquire(blocking=False):
            raise UserError("A reply is being written; stop it first.")
        before = self.bookmark()
        measured = Measured()
        answer: dict[str, Any] = {"role": "assistant", "content": ""}
        try:
            self._stand(Bookmark([*messages, answer], plan.dropped, dropped_before, self._replies + 1, plan))
            yield from self._written(messages, plan, sampling, answer, measured)
        except GeneratorExit:  # the reader has gone: as if stopped
            pass
        except BaseException:
            self._stand(before)
            raise
        finally:
            answer["measured"] = asdict(measured)
            self.measured = measured
            if again and not measured.new_tokens:
                self._stand(before)
            self._busy.release()
        self._prepare()

    def _written(
        self,
        messages: list[dict[str, Any]],
        plan: Plan,
        sampling: Sampling,
        answer: dict[str, Any],
        measured: Measured,
    ) -> Iterator[str]:
        decoder = StreamDecoder(self.engine.tokenizer)
        generator = sampling.generator(self._replies - 1)
        for token in self.engine.generate(messages, plan, sampling, generator, self._stop.is_set, measured):
            piece = decoder.push(token)
            answer["content"] = decoder.text
            if piece:
                yield piece
        piece = decoder.finish()
        answer["content"] = decoder.text
        if piece:
            yield piece

    def _stand(self, mark: Bookmark) -> None:
        self._messages, self._dropped, self._dropped_before = mark.messages, mark.dropped, mark.dropped_before
        self._replies, self._plan = mark.replies, mark.plan

    def _prepare(self) -> None:
        if self.read_ahead:
            self.engine.prepare(self._messages, self._dropped, self.sampling)

    def _fitting(self, messages: list[dict[str, Any]], dropped: int) -> int:
        """The number of turns dropped, or more where the others do not fit the context."""
        sizes = self.engine.sizes(messages)
        if sizes.fixed + sum(sizes.turns[dropped:]) <= self.engine.limit:
            return dropped
        return self.engine.window(self.sampling).after_eviction(sizes.fixed, sizes.turns, 0, dropped)

    def _last_user(self) -> int:
        users = [i for i, m in enumerate(self._messages) if m["role"] == "user"]
        if not users:
            raise UserError("There is no message yet; send one first.")
        return users[-1]

    def _check_idle(self) -> None:
        if self.busy:
            raise UserError("A reply is being written; stop it first.")


def _said(text: str) -> dict[str, Any]:
    """A user's message. UserError for an empty one."""
    text = whole_characters(text.strip())
    if not text:
        raise UserError("The message is empty; type something.")
    return {"role": "user", "content": text}
