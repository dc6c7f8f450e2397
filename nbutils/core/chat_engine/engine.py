"""The engine of a chat: from messages to the token ids of a reply, with key/value caches kept across turns.

Turns, editing and transcripts live in `nbutils.chat.session`; here is what the model reads, and when.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from nbutils.core.chat_engine.base import BaseEngine, Request
from nbutils.core.chat_engine.kvcache import KeyValueCache
from nbutils.core.chat_engine.reply import streamed
from nbutils.core.chat_engine.sampling import Sampling, next_id
from nbutils.core.chat_engine.window import (
    EXTENSIONS,
    FACTOR,
    MessageTooLongError,
    Plan,
    can_extend,
    keeps_keys,
    rotation,
)
from nbutils.core.chatml import Conversation, Message
from nbutils.core.errors import UserError
from nbutils.core.run.models import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AHEAD_PIECE = 32
"""Tokens per forward pass that reads ahead: a message, or the next token of a reply, waits for one pass at most."""

MOST_CACHES = 3
"""The one in use, the one for the next plan, and the one that a regeneration goes back to."""


class Engine(BaseEngine):
    """Replies to conversations with a model of transformers. One reply at a time; the caller sees to that.

    `context_extension` is `dynamic`, `yarn`, `linear` (twice the trained length) or `none`. A model whose position
    embeddings cannot be extended keeps its trained length: `extension` is then `none`, and `limit` says what holds.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context_extension: str = "dynamic"
    ) -> None:
        if context_extension not in EXTENSIONS:
            raise UserError(f"context_extension is {context_extension!r}; choose one of {', '.join(EXTENSIONS)}.")
        self.model = model.eval()
        self.extension = context_extension if can_extend(model) else "none"
        trained = context_length(model.config)
        super().__init__(tokenizer, trained, trained * (FACTOR if self.extension != "none" else 1))
        self.rotations = [rotation(model, kind, self.limit) for kind in ("none", self.extension)]
        """The one up to the trained length, and the one beyond it."""
        self.caches: dict[Plan, KeyValueCache] = {}
        """The one that was used last stands last."""
        self._background: threading.Thread | None = None
        self._hurry = threading.Event()
        if model.device.type == "cpu":
            # Where there is a mask, transformers copies all keys and values to share key/value heads among queries.
            # CUDA's kernels need that, the CPU's do not (`integrations/sdpa_attention.py` reads the variable).
            os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")

    def write(self, request: Request) -> Iterator[str]:
        """`generate` as text."""
        return streamed(self.tokenizer, self.generate(request))

    def generate(self, request: Request) -> Iterator[int]:
        """Ids of the reply, one by one, without the one that ends it.

        With `ahead`, only what nobody's pause has read is read between the tokens.
        """
        plan, sampling, measured, stopped = request.plan, request.sampling, request.measured, request.stopped
        started = time.perf_counter()
        self.pause()
        cache = self._cache(plan)
        prompt = self.ids(request.messages, plan, prompt=True)
        logits = cache.read(prompt, stopped)
        measured.read_tokens = len(cache.ids) - cache.reused
        measured.reused_tokens = cache.reused
        if logits is None:
            return
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[prompt] = True
        read_due = self._reads_due(request.messages, plan, sampling) if request.ahead else None
        while not stopped():
            token = next_id(logits, seen, sampling, request.generator)
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
            if read_due:
                read_due(cache.ids[len(prompt) :])
            logits = cache.append([token])

    def prepare(self, messages: Conversation, dropped: int, sampling: Sampling) -> None:
        """Starts reading in the background what the next reply will need, and what the plan that follows will."""
        self.pause()
        if not keeps_keys(self.model):
            return
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
        window, sizes = self.window(sampling), self.sizes(messages)
        try:
            plans = [window.plan(sizes, dropped)]
        except MessageTooLongError:  # a system message may leave no room
            return
        if coming := window.coming(sizes, dropped):
            plans.append(coming.plan)
        for plan in dict.fromkeys(plans):
            if not self._read_ahead(plan, self.ids(messages, plan, prompt=False), self._hurried):
                return

    def _hurried(self) -> bool:
        # The main thread is over when the program ends: the background must not keep it waiting.
        return self._hurry.is_set() or not threading.main_thread().is_alive()

    def _reads_due(self, messages: Conversation, plan: Plan, sampling: Sampling) -> Callable[[list[int]], None]:
        """Reads a piece for the plan that follows, where one is due when so much of the reply is written."""
        sizes = self.sizes(messages)
        coming = self.window(sampling).coming(sizes, plan.dropped) if keeps_keys(self.model) else None
        ids = self.ids(messages, coming.plan, prompt=True) if coming else []

        def read(written: list[int]) -> None:
            nonlocal coming
            share = coming.due(sizes.used(plan.dropped) + len(written)) if coming else 0.0
            if coming and share > 0:
                wanted = [*ids, *written]
                end = self._cache(coming.plan).held(wanted) + AHEAD_PIECE
                if end <= share * len(wanted) and not self._read_ahead(coming.plan, wanted[:end]):
                    coming = None

        return read

    def _read_ahead(self, plan: Plan, ids: list[int], interrupted: Callable[[], bool] = lambda: False) -> bool:
        """Reads in small pieces; whether the memory sufficed."""
        cache = self._cache(plan)
        try:
            if cache.ids != ids:
                cache.read(ids, interrupted, AHEAD_PIECE)
        except (RuntimeError, MemoryError):  # out of memory, most likely: the reply itself may do without
            del self.caches[plan]
            return False
        return True
