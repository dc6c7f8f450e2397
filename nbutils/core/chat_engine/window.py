"""The context of a chat: which turns the model still reads, and its rotary embeddings beyond the trained length.

The window is plain arithmetic over token counts; the same conversation always gets the same plan. transformers
recomputes the base of `dynamic` RoPE as a sequence grows, so keys cached before and after were turned by different
angles. Here a rotation never changes while a cache lives.
"""

from __future__ import annotations

import copy
import threading
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from nbutils.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

EXTENSIONS = ("dynamic", "yarn", "linear", "none")
"""Ways to read beyond the trained length (see `rotation`)."""

FACTOR = 2
"""How many times the trained length an extended context has."""

CUT = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers whose cache can be cut."""

STARTS = 4 / 5
"""Share of a plan's room; history beyond it is read ahead for the plan that follows."""

KEPT = 2 / 3
"""Share of the room that history fills when turns have been dropped, so that many turns fit before the next time."""


class MessageTooLongError(UserError):
    """A single message that cannot fit the context; `tokens` is its size, `room` what there is."""

    def __init__(self, tokens: int, room: int) -> None:
        super().__init__(f"The message is {tokens:,} tokens long and there is room for {room:,}: shorten it.")
        self.tokens = tokens
        self.room = room


@dataclass(frozen=True)
class Sizes:
    """Tokens of a conversation's parts: always read (system message, header of the reply); each earlier turn; the
    newest user message."""

    fixed: int
    turns: Sequence[int]
    newest: int = 0

    def used(self, dropped: int) -> int:
        """Tokens that are read when the first `dropped` turns are left out."""
        return self.fixed + sum(self.turns[dropped:]) + self.newest


class Plan(NamedTuple):
    """What the model reads: the number of oldest turns left out, and whether the extended rotation is used."""

    dropped: int
    extended: bool


@dataclass(frozen=True)
class Coming:
    """The plan that follows one that reads more than `start` tokens; it has to be ready at `end` tokens."""

    plan: Plan
    start: float
    end: float

    def due(self, used: int) -> float:
        """The share of its reading that has to be done where the plan before it reads `used` tokens; up to 0: none."""
        return min(1.0, (used - self.start) / max(1.0, self.end - self.start))


@dataclass(frozen=True)
class Window:
    """Lengths in tokens: trained context, limit of the (extended) context, and the longest reply."""

    trained: int
    limit: int
    max_new_tokens: int

    @property
    def room(self) -> int:
        """Tokens for everything that is read before a reply."""
        return self.limit - self.max_new_tokens

    def plan(self, sizes: Sizes, dropped: int) -> Plan:
        """The plan for the next reply where the first `dropped` turns are gone already.

        MessageTooLongError if the newest message cannot fit even alone.
        """
        if sizes.fixed + sizes.newest > self.room:
            raise MessageTooLongError(sizes.newest, max(0, self.room - sizes.fixed))
        if sizes.used(dropped) > self.room:
            dropped = self.after_eviction(sizes, dropped)
        return Plan(dropped, self._extended(sizes, dropped))

    def _extended(self, sizes: Sizes, dropped: int) -> bool:
        beyond = dropped > 0 or sizes.used(dropped) + self.max_new_tokens > self.trained
        return self.limit > self.trained and beyond

    def after_eviction(self, sizes: Sizes, dropped: int) -> int:
        """How many turns are gone once the oldest are dropped.

        The turns before the one that passes STARTS of the room decide, and what is said from there on changes nothing:
        what remains can be read before the room is full. With a turn of middling size and all until then it fills KEPT
        of the room. Where one long message goes beyond all that, or the history comes from a larger context, it is all
        cut to KEPT.
        """
        filled = list(accumulate(sizes.turns[dropped:], initial=sizes.fixed))
        before = max(0, bisect_right(filled, STARTS * self.room) - 1)
        if before < len(filled) - 1 and filled[-2] <= self.room:
            early = replace(sizes, turns=sizes.turns[: dropped + before])
            turn = (filled[before] - sizes.fixed) / max(1, before)
            left = _shortened(early, dropped, (KEPT + STARTS - 1) * self.room - turn)
            if left > dropped and sizes.used(left) <= self.room:
                return left
        return _shortened(sizes, dropped, min(KEPT * self.room, self.room - sizes.newest))

    def coming(self, sizes: Sizes, dropped: int) -> Coming | None:
        """The plan that follows when what is read, without the first `dropped` turns, outgrows its room.

        With a newest message it holds if STARTS of the room are passed while that is answered. None without one where
        history is not that long yet, and where a message that fills the room would leave no history.
        """
        crosses = self.limit > self.trained and not self._extended(sizes, dropped)
        room = self.trained - self.max_new_tokens if crosses else self.room
        start, history = STARTS * room, sizes.used(dropped) - sizes.newest
        turns = list(sizes.turns)
        if sizes.newest:
            turns.append(max(sizes.newest, int(start) + 1 - history))
        elif history <= start:
            return None
        answered = Sizes(sizes.fixed, turns)
        beyond = replace(answered, newest=max(1, room + 1 - answered.used(dropped)))
        if sizes.fixed + beyond.newest > self.room:
            return None
        turn = (history - sizes.fixed) / max(1, len(sizes.turns) - dropped)
        return Coming(self.plan(beyond, dropped), start, end=room - turn)


def _shortened(sizes: Sizes, dropped: int, allowed: float) -> int:
    """How many turns are gone when the others, with what is always read, take no more tokens than allowed."""
    while dropped < len(sizes.turns) and sizes.used(dropped) - sizes.newest > allowed:
        dropped += 1
    return dropped


# ---- rotary position embeddings

_locks: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Rotation:
    """What a model's rotary module is to use: inverse frequencies (D/2,) and the factor on cosine and sine."""

    module: Any
    inv_freq: torch.Tensor
    scaling: float


def rotary_module(model: PreTrainedModel) -> Any | None:
    """The model's one rotary embedding; None where it has none, or one per type of layer."""
    found = [module for module in model.modules() if isinstance(getattr(module, "rope_type", None), str)]
    return found[0] if len(found) == 1 else None


def can_extend(model: PreTrainedModel) -> bool:
    """Whether the context can be extended: the model has plain RoPE, or `dynamic`, which is plain when short."""
    rotary = rotary_module(model)
    with _lock_of(model):
        return rotary is not None and rotary.rope_type in ("default", "dynamic")


def keeps_keys(model: PreTrainedModel) -> bool:
    """Whether the model has a key/value cache that can be cut.

    Some have a state instead, in all layers or in a few, and some, as the first GPT, have nothing.
    """
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    stateless = CUT.issuperset(kinds) and not getattr(model, "_is_stateful", False)
    return stateless and "past_key_values" in signature(model.forward).parameters


def rotation(model: PreTrainedModel, extension: str, limit: int) -> Rotation | None:
    """The rotation for up to `limit` tokens, of a model that can be extended; for `none` any model's own.

    None for a model without a rotary embedding of the usual kind.

    Sources: `dynamic` is NTK-aware scaling (bloc97, emozilla 2023) with its base fixed for `limit` tokens; `yarn` is
    Peng et al. 2023; `linear` is position interpolation (Chen et al. 2023). All by transformers'
    `modeling_rope_utils.py`.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rotary = rotary_module(model)
    if rotary is None:
        return None
    if extension == "none":
        with _lock_of(model):  # another session of this model may be in the midst of a pass with its own rotation
            return Rotation(rotary, rotary.original_inv_freq, rotary.attention_scaling)
    config = copy.deepcopy(rotary.config)
    if getattr(config, "head_dim", 0) is None:  # Mixtral's says so
        config.head_dim = config.hidden_size // config.num_attention_heads
    config.rope_parameters |= {
        "rope_type": extension,
        "factor": limit / config.max_position_embeddings,
        "original_max_position_embeddings": config.max_position_embeddings,
    }
    return Rotation(rotary, *ROPE_INIT_FUNCTIONS[extension](config, rotary.inv_freq.device, seq_len=limit))


@contextmanager
def rotated(model: PreTrainedModel, rotation: Rotation | None) -> Iterator[None]:
    """Holds the model to one rotation, and other threads off it, for one forward pass; then restores its own."""
    with _lock_of(model):
        if rotation is None:
            yield
            return
        rotary = rotation.module
        before = rotary.rope_type, rotary.inv_freq, rotary.attention_scaling
        rotary.rope_type, rotary.inv_freq, rotary.attention_scaling = "default", rotation.inv_freq, rotation.scaling
        try:
            yield
        finally:
            rotary.rope_type, rotary.inv_freq, rotary.attention_scaling = before


def _lock_of(model: PreTrainedModel) -> threading.Lock:
    return _locks.setdefault(model, threading.Lock())
