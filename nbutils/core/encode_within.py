"""ChatML for many conversations of which only those within a limit are wanted: fast, and it stops reading early.

The ids are those of `chatml.encode`. Two things make it fast: a conversation is handed to the tokenizer in one piece,
control tokens and all, instead of message by message; and of one that is too long, no more messages are read than show
that it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from nbutils.core.chatml import CHATML, Controls, Encoded, Message, controls_for, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = (
    "What did you do last weekend?",
    "We drove to the coast, 40 miles from here, and it rained all day; but I don't mind the rain that much.",
    "x  y\n\n\tz",
    "Schön – 東京 🙂",
    "...",
)
"""Texts on which reading in one piece must agree with `chatml.encode`; the first two tell characters per token."""


@dataclass(frozen=True)
class Measured:
    """A conversation that was read as far as needed.

    `encoding` is None where it does not fit. `tokens` is its length, a lower bound where reading stopped early
    (`exact` is False); `supervised` counts the supervised tokens, None where reading stopped early.
    """

    encoding: Encoded | None
    tokens: int
    supervised: int | None
    exact: bool


@dataclass
class _Reading:
    """A conversation, the ids of its first `end` messages, and a lower bound of its tokens."""

    messages: Sequence[Message]
    tokens: int
    ids: list[int] = field(default_factory=list)
    end: int = 0

    @property
    def complete(self) -> bool:
        return self.end == len(self.messages)

    def next_span(self, characters: float) -> Sequence[Message]:
        """The next messages, at least one, until so many characters are passed."""
        start = self.end
        while not self.complete and (characters > 0 or self.end == start):
            characters -= len(self.messages[self.end]["content"])
            self.end += 1
        return self.messages[start : self.end]


def encode_within(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], max_length: int
) -> list[Measured]:
    """`chatml.encode_batch` for conversations of which those above `max_length` tokens are not wanted.

    How far a longer one is read depends on itself and the tokenizer alone, never on its neighbours.
    """
    controls = controls_for(tokenizer, {m["role"] for messages in conversations for m in messages} | {"assistant"})
    frame = {role: len(head) + 2 + len(controls.newline) for role, head in controls.headers.items()}
    rate = characters_per_token(tokenizer)
    # The control tokens of all messages are certain from the start; texts are added as they are read.
    readings = [_Reading(messages, sum([frame[m["role"]] for m in messages])) for messages in conversations]
    while waiting := [one for one in readings if one.tokens <= max_length and not one.complete]:
        spans = [one.next_span((max_length - one.tokens) * rate) for one in waiting]
        for one, span, fresh in zip(waiting, spans, _read(tokenizer, controls, spans), strict=True):
            one.ids += fresh
            one.tokens += len(fresh) - sum([frame[m["role"]] for m in span])
    masks = iter(_masks(controls, [one for one in readings if one.complete]))
    found = []
    for one in readings:
        if one.complete:
            mask = next(masks)
            encoding = Encoded(one.ids, mask.tolist()) if one.tokens <= max_length else None
            found.append(Measured(encoding, one.tokens, int(mask.sum()), True))
        else:
            found.append(Measured(None, one.tokens, None, False))
    return found


def _masks(controls: Controls, readings: Sequence[_Reading]) -> list[np.ndarray]:
    """Which ids are supervised: from behind each assistant's header to its end token; one (T,) array each."""
    if not readings:
        return []
    flat = np.fromiter(
        chain.from_iterable(one.ids for one in readings), np.int32, sum(len(one.ids) for one in readings)
    )
    edges = np.cumsum([len(one.ids) for one in readings])[:-1]
    assistant = np.array([m["role"] == "assistant" for one in readings for m in one.messages], bool)
    starts = np.flatnonzero(flat == controls.im_start)[assistant] + 1 + len(controls.headers["assistant"])
    stops = np.flatnonzero(flat == controls.im_end)[assistant] + 1
    steps = np.zeros(len(flat) + 1, np.int8)
    steps[starts] = 1
    steps[stops] -= 1
    return np.split(np.cumsum(steps[:-1], dtype=np.int8).astype(bool), edges)


def _read(
    tokenizer: PreTrainedTokenizerBase, controls: Controls, spans: Sequence[Sequence[Message]]
) -> list[list[int]]:
    """Ids of consecutive messages of each conversation, control tokens included."""
    if not reads_in_one_piece(tokenizer):
        return [encode(tokenizer, span).input_ids for span in spans]
    rows = _in_one_piece(tokenizer, spans)
    specials = np.zeros(len(tokenizer), bool)
    specials[list(controls.forbidden)] = True
    flat = np.fromiter(chain.from_iterable(rows), np.int32, sum(map(len, rows)))
    starts = np.cumsum([0, *map(len, rows)])[:-1]
    found = np.add.reduceat(specials[flat], starts, dtype=np.int64)
    # A text that spells a special token shows as one too many; it is read again message by message, which defuses it.
    return [
        row if number == 2 * len(span) else encode(tokenizer, span).input_ids
        for row, number, span in zip(rows, found.tolist(), spans, strict=True)
    ]


def _in_one_piece(tokenizer: PreTrainedTokenizerBase, spans: Sequence[Sequence[Message]]) -> list[list[int]]:
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False
    # The backend without transformers' wrapper, and without character offsets: 40 % faster.
    found = backend.encode_batch_fast([CHATML.render(span) for span in spans], add_special_tokens=False)
    return [encoding.ids for encoding in found]


@lru_cache(maxsize=8)
def reads_in_one_piece(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether this tokenizer gives the same ids for a whole conversation as for its messages one by one."""
    span = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate((*PROBE, *PROBE))]
    return _in_one_piece(tokenizer, [span])[0] == encode(tokenizer, span).input_ids


@lru_cache(maxsize=8)
def characters_per_token(tokenizer: PreTrainedTokenizerBase) -> float:
    """Characters per token on a fixed English text: how much to read at first to see whether a text can fit."""
    said, silent = ([{"role": "user", "content": text} for text in texts] for texts in (PROBE[:2], ("", "")))
    tokens = len(encode(tokenizer, said)) - len(encode(tokenizer, silent))
    return sum(map(len, PROBE[:2])) / tokens
