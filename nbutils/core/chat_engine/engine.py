"""The engine of a chat: from messages to the token ids of a reply, with key/value caches kept across turns.

Turns, editing and transcripts live in `nbutils.chat.session`; here is what the model reads, and when.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from nbutils.core.chat_engine.kvcache import KeyValueCache
from nbutils.core.chat_engine.sampling import Sampling, next_id
from nbutils.core.chat_engine.template import ChatMLTemplate, OwnTemplate, has_own_template
from nbutils.core.chat_engine.window import (
    EXTENSIONS,
    FACTOR,
    MessageTooLongError,
    Plan,
    Sizes,
    Window,
    can_extend,
    rotation,
)
from nbutils.core.chatml import Conversation, Message
from nbutils.core.errors import UserError
from nbutils.core.run.models import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AHEAD = 1 / 8
"""A change of window or rotation that a next message of this share of the context causes is prepared in advance."""

BACKGROUND_PIECE = 64
"""Tokens per forward pass in the background: a new message waits for one pass at most."""

REPLACEMENT = "\ufffd"

MOST_CACHES = 3
"""The one in use, the one for the next plan, and the one that a regeneration goes back to."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0, lt=2**63)]


class Measured(BaseModel):
    """What one reply cost: tokens read and written, and seconds since the message was sent.

    Seconds are those that the model worked on it: not those in which whoever reads it did something else.
    """

    model_config = ConfigDict(strict=True)

    read_tokens: Count = 0
    reused_tokens: Count = 0
    new_tokens: Count = 0
    seconds_to_first_token: Seconds | None = None
    seconds: Seconds = 0.0
    ended: Literal["end", "length", "stopped"] = "stopped"  # by `<|im_end|>`, by max_new_tokens, or by a person

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of writing behind the first token."""
        if self.new_tokens < 2 or self.seconds_to_first_token is None:
            return None
        return (self.new_tokens - 1) / max(self.seconds - self.seconds_to_first_token, 1e-9)

    @property
    def summary(self) -> str:
        """Tokens, speed, time to first token, and what ended the reply early, in words."""
        words = [f"{self.new_tokens} tokens"]
        if self.tokens_per_second is not None:
            words.append(f"{self.tokens_per_second:.1f} tokens/s")
        if self.seconds_to_first_token is not None:
            words.append(f"first after {self.seconds_to_first_token:.2f} s")
        if self.ended != "end":
            words.append({"stopped": "stopped", "length": "longest reply reached"}[self.ended])
        return " · ".join(words)


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
        self.trained = context_length(model.config)
        self.extension = context_extension if can_extend(model) else "none"
        self.limit = self.trained * (FACTOR if self.extension != "none" else 1)
        self.rotations = [rotation(model, kind, self.limit) for kind in ("none", self.extension)]
        """The one up to the trained length, and the one beyond it."""
        self.caches: dict[Plan, KeyValueCache] = {}
        """The one that was used last stands last."""
        self._template = (OwnTemplate if has_own_template(tokenizer) else ChatMLTemplate)(tokenizer)
        self.ends = self._template.ends
        self._background: threading.Thread | None = None
        self._hurry = threading.Event()
        if model.device.type == "cpu":
            # Where there is a mask, transformers copies all keys and values to share key/value heads among queries.
            # CUDA's kernels need that, the CPU's do not (`integrations/sdpa_attention.py` reads the variable).
            os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")

    def window(self, sampling: Sampling) -> Window:
        """The window for replies of that length. UserError where a reply alone would fill the context."""
        if sampling.max_new_tokens > self.limit // 2:
            raise UserError(
                f"max_new_tokens is {sampling.max_new_tokens}, more than half of the context of {self.limit} tokens; "
                f"choose at most {self.limit // 2}."
            )
        return Window(self.trained, self.limit, sampling.max_new_tokens)

    def sizes(self, messages: Conversation, ahead: int = 0) -> Sizes:
        """Sizes in tokens, each turn's by itself; a user's message at the end is the newest, and no turn yet.

        `ahead` stands for tokens of a message that is not there yet.
        """
        system, turns = _turns(messages)
        newest = turns.pop() if messages and messages[-1]["role"] == "user" else []
        hello: list[Message] = [{"role": "user", "content": "Hi"}]
        header = self._size(hello, prompt=True) - self._size(hello)
        return Sizes(header + self._size(system), [self._size(turn) for turn in turns], self._size(newest) + ahead)

    def _size(self, messages: Conversation, *, prompt: bool = False) -> int:
        return len(self._template.ids(messages, prompt=prompt))

    def plan(self, messages: Conversation, dropped: int, sampling: Sampling, ahead: int = 0) -> Plan:
        """What is read for the next reply; for `ahead` see `sizes`."""
        return self.window(sampling).plan(self.sizes(messages, ahead), dropped)

    def ids(self, messages: Conversation, plan: Plan, *, prompt: bool) -> list[int]:
        """Token ids of the messages that the plan keeps, with the header of a reply behind them if `prompt`."""
        system, turns = _turns(messages)
        kept = [*system, *(message for turn in turns[plan.dropped :] for message in turn)]
        return self._template.ids(kept, prompt=prompt)

    def generate(
        self,
        messages: Conversation,
        plan: Plan,
        sampling: Sampling,
        generator: torch.Generator,
        stopped: Callable[[], bool],
        measured: Measured,
    ) -> Iterator[int]:
        """Ids of the reply, one by one, without the one that ends it, until `stopped` says so. Fills `measured`."""
        started = time.perf_counter()
        self.pause()
        cache = self._cache(plan)
        prompt = self.ids(messages, plan, prompt=True)
        logits = cache.read(prompt, stopped)
        measured.read_tokens = len(cache.ids) - cache.reused
        measured.reused_tokens = cache.reused
        if logits is None:
            return
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[prompt] = True
        while not stopped():
            token = next_id(logits, seen, sampling, generator)
            seen[token] = True
            measured.new_tokens += 1
            measured.seconds = time.perf_counter() - started
            measured.seconds_to_first_token = measured.seconds_to_first_token or measured.seconds
            if token in self.ends:
                measured.ended = "end"
                return
            left = time.perf_counter()
            yield token
            started += time.perf_counter() - left  # the reader's own time, another model's beside this one too
            if measured.new_tokens >= sampling.max_new_tokens:
                measured.ended = "length"
                return
            if stopped():
                return
            logits = cache.append([token])

    def prepare(self, messages: Conversation, dropped: int, sampling: Sampling) -> None:
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
        self.wait()

    def wait(self) -> None:
        """Waits until the background reading is through."""
        if self._background is not None:
            self._background.join()

    def forget(self) -> None:
        """Frees all caches."""
        self.pause()
        self.caches.clear()

    def _cache(self, plan: Plan) -> KeyValueCache:
        """The cache of a plan, to be used now; where there are too many, the one that was not used for longest goes."""
        cache = self.caches.pop(plan, None) or KeyValueCache(self.model, self.rotations[plan.extended])
        for old in list(self.caches)[: 1 - MOST_CACHES]:
            del self.caches[old]
        self.caches[plan] = cache
        return cache

    def _prepare(self, messages: list[Message], dropped: int, sampling: Sampling) -> None:
        plans = set()
        with suppress(MessageTooLongError):  # a system message may leave no room
            for length in (1, round(AHEAD * self.limit)):
                plans.add(self.plan(messages, dropped, sampling, ahead=length))
        for plan in sorted(plans):
            ids = self.ids(messages, plan, prompt=False)
            cache = self._cache(plan)
            if cache.ids != ids:
                try:
                    # The main thread is over when the program ends: this thread must not keep it waiting.
                    cache.read(
                        ids,
                        lambda: self._hurry.is_set() or not threading.main_thread().is_alive(),
                        BACKGROUND_PIECE,
                    )
                except (RuntimeError, MemoryError):  # out of memory, most likely: the reply itself may do without
                    del self.caches[plan]
                    return


def _turns(messages: Conversation) -> tuple[list[Message], list[list[Message]]]:
    """The system's messages at the start, never dropped, and the turns: a user's message and what follows it."""
    system = list(takewhile(lambda message: message["role"] == "system", messages))
    turns: list[list[Message]] = []
    for message in messages[len(system) :]:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return system, turns


def streamed(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> Iterator[str]:
    """Turns ids into pieces of text, none of them empty, whose sum is the decoded whole, stripped at both ends.

    Bytes of an unfinished character and trailing white space wait. What a token decodes to depends on those before it:
    it is decoded together with those of the piece before. A tokenizer with byte fallback takes back a whole run of
    bytes where a later one makes no character of it; what is out stays then.
    """
    read: list[int] = []
    start = end = shown = 0
    text = ""
    for token in chain(ids, [None]):
        read += [] if token is None else [token]
        before, now = (
            tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for part in (read[start:end], read[start:])
        )
        if len(now) > len(before) and (token is None or not now.endswith(REPLACEMENT)):
            text = (text + now[len(before) :]) if text else now.lstrip()
            start, end = end, len(read)
            if piece := text.rstrip()[shown:]:
                shown += len(piece)
                yield piece
