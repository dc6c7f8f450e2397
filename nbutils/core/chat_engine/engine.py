"""The engine of a chat: from messages to the token ids of a reply, with key/value caches kept across turns.

Turns, editing and transcripts live in `nbutils.chat.session`; here is what the model reads, and when.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from nbutils.core.chat_engine.base import BaseEngine, Request
from nbutils.core.chat_engine.kvcache import KeyValueCache
from nbutils.core.chat_engine.reply import streamed
from nbutils.core.chat_engine.sampling import next_id
from nbutils.core.chat_engine.window import (
    EXTENSIONS,
    FACTOR,
    Plan,
    can_extend,
    keeps_keys,
    rotation,
)
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
        ahead = request.ahead
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
            ahead = ahead and self._read_due(request, cache.ids[len(prompt) :])
            logits = cache.append([token])

    def forget(self) -> None:
        """Frees all caches."""
        super().forget()
        self.caches.clear()

    def _cache(self, plan: Plan) -> KeyValueCache:
        """The cache of a plan, to be used now; where there are too many, the one that was not used for longest goes."""
        cache = self.caches.pop(plan, None) or KeyValueCache(self.model, self.rotations[plan.extended])
        for old in list(self.caches)[: 1 - MOST_CACHES]:
            del self.caches[old]
        self.caches[plan] = cache
        return cache

    def _read_due(self, request: Request, written: list[int]) -> bool:
        """Reads a piece for the plan that follows, where one is due when so much of the reply is written.

        Whether the memory sufficed.
        """
        dropped, sizes = request.plan.dropped, self.sizes(request.messages)
        coming = self.window(request.sampling).coming(sizes, dropped)
        if coming and (share := coming.due(sizes.used(dropped) + len(written))) > 0:
            wanted = [*self.ids(request.messages, coming.plan, prompt=True), *written]
            end = self._cache(coming.plan).held(wanted) + AHEAD_PIECE
            return end > share * len(wanted) or self.read_ahead(coming.plan, wanted[:end])
        return True

    def read_ahead(self, plan: Plan, ids: list[int], interrupted: Callable[[], bool] = lambda: False) -> bool:
        """Reads in small pieces; whether the model keeps what it reads, and the memory sufficed."""
        if not keeps_keys(self.model):
            return False
        cache = self._cache(plan)
        try:
            if cache.ids != ids:
                cache.read(ids, interrupted, AHEAD_PIECE)
        except (RuntimeError, MemoryError):  # out of memory, most likely: the reply itself may do without
            del self.caches[plan]
            return False
        return True
