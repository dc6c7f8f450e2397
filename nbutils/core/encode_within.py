"""ChatML for many conversations of which only those within a limit are wanted: fast, and it stops reading early.

The ids are those of `chatml.encode`. Two things make it fast: a conversation is handed to the tokenizer in one piece,
control tokens and all, instead of message by message; and of one that is too long, no more messages are read than show
that it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from nbutils.core.chatml import (
    CHATML,
    Controls,
    Conversation,
    Encoded,
    assembled,
    controls_for,
    encode,
    lost,
    texts_of,
)
from nbutils.core.errors import UserError
from nbutils.core.vocabulary import plain_ids

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
    """A conversation, a lower bound of its tokens, and its first texts as they are read: ids, whether read apart."""

    messages: Conversation
    tokens: int
    texts: list[tuple[list[int], bool]] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return len(self.texts) == len(self.messages)

    def next_span(self, characters: float) -> Conversation:
        """The next messages, at least one, until so many characters are passed."""
        start = end = len(self.texts)
        for message in self.messages[start:]:
            if characters <= 0 and end > start:
                break
            characters -= len(message["content"])
            end += 1
        return self.messages[start:end]


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
        for one, texts in zip(waiting, _read(tokenizer, controls, spans), strict=True):
            one.texts += texts
            one.tokens += sum([len(ids) for ids, _ in texts])
    return [_measured(controls, one, max_length) for one in readings]


def _measured(controls: Controls, one: _Reading, max_length: int) -> Measured:
    if not one.complete:
        return Measured(None, one.tokens, None)
    encoding = assembled(controls, one.messages, one.texts)
    return Measured(encoding if one.tokens <= max_length else None, one.tokens, sum(encoding.supervised))


def _read(
    tokenizer: PreTrainedTokenizerBase, controls: Controls, spans: Sequence[Conversation]
) -> Iterator[list[tuple[list[int], bool]]]:
    """The texts of consecutive messages of each conversation."""
    rows = _in_one_piece(tokenizer, spans) if reads_in_one_piece(tokenizer) else [[] for _ in spans]
    for row, span in zip(rows, spans, strict=True):
        flat = [(message["role"], message["content"].strip()) for message in span]
        # Message by message where that must be, which defuses and loses nothing.
        yield _texts_in(tokenizer, controls, flat, row) or texts_of(tokenizer, controls, flat)


def _texts_in(
    tokenizer: PreTrainedTokenizerBase, controls: Controls, flat: Sequence[tuple[str, str]], row: list[int]
) -> list[tuple[list[int], bool]]:
    """The texts in ids that were read in one piece; none where one spells a special token, has lost something, or is
    joined to its header.
    """
    if controls.drops and any(lost(tokenizer, controls, text) for _, text in flat):
        return []
    if sum(map(controls.forbidden.__contains__, row)) != 2 * len(flat):
        return []
    texts, end = [], 0
    for role, _ in flat:
        header = controls.headers[role]
        begin = row.index(controls.im_start, end) + 1
        start = begin + len(header)
        if row[begin:start] != header:
            return []
        end = row.index(controls.im_end, start)
        texts.append((row[start:end], False))
    return texts


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
