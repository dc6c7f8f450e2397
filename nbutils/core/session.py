"""The engine of a chat: from messages to the token ids of a reply, with key/value caches kept across turns.

Turns, editing and transcripts live in `nbutils.chat.session`; here is what the model reads, and when.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nbutils.core.chatml import IM_END, Message, encode
from nbutils.core.errors import UserError
from nbutils.core.kvcache import KeyValueCache
from nbutils.core.models import context_length
from nbutils.core.rotation import EXTENSIONS, FACTOR, can_extend, rotations
from nbutils.core.sampling import Sampling, next_id
from nbutils.core.window import Plan, Window

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AHEAD = 1 / 8
"""A change of window or rotation that a next message of this share of the context causes is prepared in advance."""

BACKGROUND_PIECE = 64
"""Tokens per forward pass in the background: a new message waits for one pass at most."""


MOST_CACHES = 3
"""The one in use, the one for the next plan, and the one that a regeneration goes back to."""

ENDINGS = ("end", "length", "stopped")
"""What ends a reply: `<|im_end|>`, max_new_tokens, or a person."""


@dataclass
class Measured:
    """What one reply cost: tokens read and written, and seconds since the message was sent.

    Seconds are those that the model worked on it: not those in which whoever reads it did something else.
    """

    read_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    seconds_to_first_token: float | None = None
    seconds: float = 0.0
    ended: str = "stopped"  # one of ENDINGS

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of writing behind the first token."""
        if self.new_tokens < 2 or self.seconds_to_first_token is None:
            return None
        return (self.new_tokens - 1) / max(self.seconds - self.seconds_to_first_token, 1e-9)


@dataclass(frozen=True)
class Sizes:
    """Tokens of a conversation's parts: always read; each earlier turn pair; the newest user message."""

    fixed: int
    turns: list[int]
    newest: int


class Engine:
    """Replies to conversations with one model. One reply at a time; the caller sees to that.

    `context_extension` is `dynamic`, `yarn`, `linear` (twice the trained length) or `none`. A model whose position
    embeddings cannot be extended keeps its trained length: `extension` is then `none`, and `limit` says what holds.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context_extension: str = "dynamic"
    ) -> None:
        if context_extension not in EXTENSIONS:
            raise UserError(f"context_extension is {context_extension!r}; choose one of {', '.join(EXTENSIONS)}.")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.trained = context_length(model)
        self.extension = context_extension if can_extend(model) else "none"
        self.limit = self.trained * (FACTOR if self.extension != "none" else 1)
        self._own, self._extended = rotations(model, self.extension, self.limit)
        self._caches: dict[Plan, KeyValueCache] = {}
        self._current: Plan | None = None
        self._encoded: dict[tuple[str, str], list[int]] = {}
        self._header = encode(tokenizer, [], add_generation_prompt=True).input_ids
        self._background: threading.Thread | None = None
        self._hurry = threading.Event()
        self._end = tokenizer.convert_tokens_to_ids(IM_END)
        self.background_tokens = 0

    def window(self, sampling: Sampling) -> Window:
        """The window for replies of that length. UserError where a reply alone would fill the context."""
        if sampling.max_new_tokens > self.limit // 2:
            raise UserError(
                f"max_new_tokens is {sampling.max_new_tokens}, more than half of the context of {self.limit} tokens; "
                f"choose at most {self.limit // 2}."
            )
        return Window(self.trained, self.limit, sampling.max_new_tokens)

    def sizes(self, messages: Sequence[Message]) -> Sizes:
        """Sizes in tokens; a trailing user message is the newest, every turn before it starts with a user message."""
        tokens = [len(self._ids_of(message["role"], message["content"])) for message in messages]
        system = system_messages(messages)
        waiting = bool(messages) and messages[-1]["role"] == "user"
        starts = turn_starts(messages[: len(messages) - waiting])
        ends = [*starts[1:], len(messages) - waiting]
        turns = [sum(tokens[a:b]) for a, b in zip(starts, ends, strict=False)]
        return Sizes(len(self._header) + sum(tokens[:system]), turns, tokens[-1] if waiting else 0)

    def _ids_of(self, role: str, text: str) -> list[int]:
        """Ids of one message; those of a conversation are its messages' in a row (see `nbutils.core.chatml`)."""
        ids = self._encoded.get((role, text))
        if ids is None:
            if len(self._encoded) > 2000:  # a reply in the making leaves an entry for every length it had
                self._encoded.clear()  # by any thread, at any time: nothing is looked up twice here
            ids = encode(self.tokenizer, [{"role": role, "content": text}]).input_ids
            self._encoded[role, text] = ids
        return ids

    def plan(self, messages: Sequence[Message], dropped: int, sampling: Sampling, ahead: int = 0) -> Plan:
        """What is read for the next reply; `ahead` stands for tokens of a message that is not there yet."""
        sizes = self.sizes(messages)
        return self.window(sampling).plan(sizes.fixed, sizes.turns, sizes.newest + ahead, dropped)

    def ids(self, messages: Sequence[Message], plan: Plan, *, prompt: bool) -> list[int]:
        """Token ids of the messages that the plan keeps, with the header of a reply behind them if `prompt`."""
        system = system_messages(messages)
        starts = [*turn_starts(messages), len(messages)]
        kept = [*messages[:system], *messages[starts[min(plan.dropped, len(starts) - 1)] :]]
        ids = [i for message in kept for i in self._ids_of(message["role"], message["content"])]
        return ids + self._header if prompt else ids

    @property
    def cached_ids(self) -> list[int]:
        """The ids that the cache in use holds."""
        return list(self._caches[self._current].ids) if self._current in self._caches else []

    def generate(
        self,
        messages: Sequence[Message],
        plan: Plan,
        sampling: Sampling,
        generator: torch.Generator,
        stopped: Callable[[], bool],
        measured: Measured,
    ) -> Iterator[int]:
        """Ids of the reply, one by one, without `<|im_end|>`; ends early once `stopped` says so. Fills `measured`."""
        started = time.perf_counter()
        self.pause()
        cache = self._cache(plan)
        self._current = plan
        prompt = self.ids(messages, plan, prompt=True)
        logits = cache.read(prompt, stopped)
        measured.read_tokens = len(cache.ids) - cache.reused
        measured.reused_tokens = cache.reused
        seen: torch.Tensor | None = None
        while logits is not None and not stopped():
            if seen is None:
                seen = torch.zeros_like(logits, dtype=torch.bool)
                seen[prompt] = True
            token = next_id(logits, seen, sampling, generator)
            seen[token] = True
            measured.new_tokens += 1
            measured.seconds = time.perf_counter() - started
            measured.seconds_to_first_token = measured.seconds_to_first_token or measured.seconds
            if token == self._end:
                measured.ended = "end"
                return
            left = time.perf_counter()
            yield token
            started += time.perf_counter() - left  # the reader's own time, another model's beside this one too
            if measured.new_tokens >= sampling.max_new_tokens:
                measured.ended = "length"
                return
            if not stopped():
                logits = cache.append(token)

    def prepare(self, messages: Sequence[Message], dropped: int, sampling: Sampling) -> None:
        """Starts reading in the background what the next reply will need, for a short and for a longer message."""
        self.pause()
        self._hurry.clear()
        self._background = threading.Thread(
            target=self._prepare, args=(list(messages), dropped, sampling), name="chat-reads-ahead"
        )
        self._background.start()

    def pause(self) -> None:
        """Ends the background reading; what it has read stays."""
        self._hurry.set()
        if self._background is not None:
            self._background.join()
            self._background = None

    def wait(self) -> None:
        """Waits until the background reading is through (for tests and measurements)."""
        if self._background is not None:
            self._background.join()

    def forget(self) -> None:
        """Frees all caches."""
        self.pause()
        self._caches.clear()
        self._current = None

    def _cache(self, plan: Plan) -> KeyValueCache:
        if plan not in self._caches:
            for old in [p for p in self._caches if p != self._current][: max(0, len(self._caches) - MOST_CACHES + 1)]:
                del self._caches[old]
            rotation = self._extended if plan.extended else self._own
            self._caches[plan] = KeyValueCache(self.model, rotation)
        return self._caches[plan]

    def _prepare(self, messages: list[Message], dropped: int, sampling: Sampling) -> None:
        room = self.window(sampling).room - self.sizes(messages).fixed
        if room < 1:  # a system message that leaves none: the next message is refused
            return
        lengths = [min(length, room) for length in (1, round(AHEAD * self.limit))]
        plans = {self.plan(messages, dropped, sampling, ahead=length) for length in lengths}
        for plan in [p for p in self._caches if p not in plans and p != self._current]:
            del self._caches[plan]
        for plan in sorted(plans, key=lambda p: (p.dropped, p.extended)):
            ids = self.ids(messages, plan, prompt=False)
            cache = self._cache(plan)
            if ids and cache.ids != ids:
                try:
                    cache.read(ids, self._must_pause, BACKGROUND_PIECE)
                except (RuntimeError, MemoryError):  # out of memory, most likely: the reply itself may do without
                    del self._caches[plan]
                    return
                self.background_tokens += len(cache.ids) - cache.reused

    def _must_pause(self) -> bool:
        # The main thread is over when the program ends: this thread must not keep it waiting.
        return self._hurry.is_set() or not threading.main_thread().is_alive()


def system_messages(messages: Sequence[Message]) -> int:
    """How many messages at the start are the system's; they are never dropped."""
    count = 0
    while count < len(messages) and messages[count]["role"] == "system":
        count += 1
    return count


def turn_starts(messages: Sequence[Message]) -> list[int]:
    """Index of each turn's first message: a user's, or whatever comes first behind the system message."""
    first = system_messages(messages)
    return [i for i in range(first, len(messages)) if i == first or messages[i]["role"] == "user"]
