"""A key/value cache that knows which token ids it holds and with which rotation they were read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from nbutils.core.chat_engine.window import Rotation, keeps_keys, rotated

if TYPE_CHECKING:
    from transformers import PreTrainedModel

READ_TOKENS = 256
"""Tokens of a prompt read in one forward pass; between two passes a reply can be stopped."""


class KeyValueCache:
    """Keys and values of `ids`, all turned by one rotation.

    transformers cuts caches by length alone; this one compares ids, so that an edited history reuses exactly the
    prefix that still holds. A forward pass that fails half-way leaves `ids` true. For a model that keeps a state in
    place of keys and values, nothing is kept: it reads everything again for each token.
    """

    def __init__(self, model: PreTrainedModel, rotation: Rotation | None) -> None:
        self.model = model
        self.rotation = rotation
        self.ids: list[int] = []
        self.reused = 0
        self._kept = keeps_keys(model)
        self._cache = Cache(layer_class_to_replicate=_GrowingLayer)

    def read(
        self, ids: list[int], interrupted: Callable[[], bool] = lambda: False, piece: int = READ_TOKENS
    ) -> torch.Tensor | None:
        """Makes the cache hold exactly `ids`, reading only what it lacks (the last id always).

        Returns the float32 logits (V,) behind the last id, on the CPU; None if `interrupted` between two pieces, with
        what was read so far kept. `reused` then says how many ids were there already.
        """
        if not self._kept:
            self.ids, piece = [], len(ids)
        self.reused = self.held(ids[:-1])
        self._truncate(self.reused)
        logits = None
        for start in range(len(self.ids), len(ids), piece):
            if interrupted():
                return None
            logits = self.append(ids[start : start + piece])
        return logits

    def held(self, ids: list[int]) -> int:
        """How many of these ids, from the first on, are there already."""
        pairs = zip(self.ids, ids, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _truncate(self, length: int) -> None:
        del self.ids[length:]
        for layer in self._cache.layers:
            layer.length = min(layer.length, length)

    def append(self, ids: list[int]) -> torch.Tensor:
        """Reads more ids in one forward pass; returns the float32 logits (V,) behind the last, on the CPU."""
        self._truncate(len(self.ids))  # an earlier pass may have failed between two layers
        with torch.inference_mode(), rotated(self.model, self.rotation):
            read, kept = (ids, {"past_key_values": self._cache}) if self._kept else (self.ids + ids, {})
            tokens = torch.tensor([read]).to(self.model.device)
            out = self.model(input_ids=tokens, logits_to_keep=1, use_cache=self._kept, **kept)
            logits = out.logits[0, -1].float().cpu()
        self.ids += ids
        return logits


class _GrowingLayer(DynamicLayer):
    """One layer's keys and values (1, H, T, D), written in place into buffers that double when they are full.

    transformers' own layer copies everything it holds for each new token.
    """

    length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end = self.length + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        if (lack := end - self.keys.shape[2]) > 0:
            more = (0, 0, 0, max(256, self.keys.shape[2], lack))
            self.keys, self.values = (torch.nn.functional.pad(held, more) for held in (self.keys, self.values))
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length
