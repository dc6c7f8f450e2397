"""ChatML for many conversations of which only those within a limit are wanted: fast, and it stops reading early.

The ids are those of `chatml.encode`. Two things make it fast: a conversation is handed to the tokenizer in one piece,
control tokens and all, instead of message by message; and of one that is too long, no more messages are read than show
that it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from nbutils.core.chatml import CHATML, Controls, Conversation, Encoded, controls_for, encode, masks
from nbutils.core.errors import UserError
from nbutils.core.vocabulary import lost, plain_ids

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

    @property
    def exact(self) -> bool:
        """Whether all of it was read."""
        return self.supervised is not None


@dataclass
class _Reading:
    """A conversation, the ids of its first `end` messages, and a lower bound of its tokens."""

    messages: Conversation
    tokens: int
    ids: list[int] = field(default_factory=list)
    end: int = 0
    apart: int = 0

    @property
    def complete(self) -> bool:
        return self.end == len(self.messages)

    def next_span(self, characters: float) -> Conversation:
        """The next messages, at least one, until so many characters are passed."""
        start = self.end
        for message in self.messages[start:]:
            if characters <= 0 and self.end > start:
                break
            characters -= len(message["content"])
            self.end += 1
        return self.messages[start : self.end]


def encode_within(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], max_length: int
) -> list[Measured]:
    """`chatml.encode_batch` for conversations of which those above `max_length` tokens are not wanted.

    How far a longer one is read depends on itself and the tokenizer alone, never on its neighbours.
    """
    controls = controls_for(tokenizer, {m["role"] for messages in conversations for m in messages})
    frame = {role: len(head) + 2 + len(controls.newline) for role, head in controls.headers.items()}
    rate = characters_per_token(tokenizer)
    # The control tokens of all messages are certain from the start; texts are added as they are read.
    readings = [_Reading(messages, sum([frame[m["role"]] for m in messages])) for messages in conversations]
    while waiting := [one for one in readings if one.tokens <= max_length and not one.complete]:
        spans = [one.next_span((max_length - one.tokens) * rate) for one in waiting]
        for one, (fresh, apart) in zip(waiting, _read(tokenizer, controls, spans), strict=True):
            one.ids += fresh
            one.apart += apart
            one.tokens = len(one.ids) + sum([frame[m["role"]] for m in one.messages[one.end :]])
    return [_measured(controls, one, max_length) for one in readings]


def _measured(controls: Controls, one: _Reading, max_length: int) -> Measured:
    if not one.complete:
        return Measured(None, one.tokens, None)
    supervised, context = masks(controls, one.messages, one.ids)
    encoding = Encoded(one.ids, supervised, context, one.apart) if one.tokens <= max_length else None
    return Measured(encoding, one.tokens, sum(supervised))


def _read(
    tokenizer: PreTrainedTokenizerBase, controls: Controls, spans: Sequence[Conversation]
) -> list[tuple[list[int], int]]:
    """Ids of consecutive messages of each conversation, control tokens included, and how many were read apart."""
    rows = _in_one_piece(tokenizer, spans) if reads_in_one_piece(tokenizer) else [[] for _ in spans]
    found = []
    for row, span in zip(rows, spans, strict=True):
        if _is_whole(tokenizer, controls, span, row):
            found.append((row, 0))
        else:  # message by message, which defuses and loses nothing
            one = encode(tokenizer, span)
            found.append((one.input_ids, one.apart))
    return found


def _is_whole(tokenizer: PreTrainedTokenizerBase, controls: Controls, span: Conversation, row: Sequence[int]) -> bool:
    """Whether no text read in one piece spells a special token, has lost something, or is joined to its header."""
    if any(lost(tokenizer, message["content"]) for message in span):
        return False
    if sum(map(controls.forbidden.__contains__, row)) != 2 * len(span):
        return False
    start = 0
    for message in span:
        header = controls.headers[message["role"]]
        start = row.index(controls.im_start, start) + 1
        if row[start : start + len(header)] != header:
            return False
    return True


def _in_one_piece(tokenizer: PreTrainedTokenizerBase, spans: Sequence[Conversation]) -> list[list[int]]:
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
    try:
        return _in_one_piece(tokenizer, [span])[0] == encode(tokenizer, span).input_ids
    except UserError:  # a text of ours, which need not be in any row
        return False


@lru_cache(maxsize=8)
def characters_per_token(tokenizer: PreTrainedTokenizerBase) -> float:
    """Characters per token on a fixed English text: how much to read at first to see whether a text can fit."""
    header = controls_for(tokenizer, {"user"}).plain["user"]
    tokens = sum(len(row) - len(header) for row in plain_ids(tokenizer, [f"user\n{text}" for text in PROBE[:2]]))
    return sum(map(len, PROBE[:2])) / tokens
