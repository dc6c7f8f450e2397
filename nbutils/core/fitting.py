"""ChatML for many conversations of which only those within a limit are wanted: fast, and it stops reading early.

The ids are those of `chatml.encode`. Two things make it fast: a conversation is handed to the tokenizer in one piece,
control tokens and all, instead of message by message, and what cannot fit any more is not read to its end, or not at
all where the longest pieces of the vocabulary would not get through a message in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from nbutils.core.bounds import bound_of
from nbutils.core.chatml import IM_END, IM_START, Controls, Encoded, Message, assembled, controls_for, text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = (
    "What did you do last weekend?",
    "We drove to the coast, 40 miles from here, and it rained all day; but I don't mind the rain that much.",
    "x  y\n\n\tz",
    "Schön – 東京 🙂",
    "...",
)
"""Texts on which reading in one piece must agree with `chatml.encode`, and which tell characters per token."""


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


def encode_within(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], max_length: int
) -> list[Measured]:
    """`encode_batch` for conversations of which those above `max_length` tokens are not wanted.

    How far an over-long one is read depends on itself and the tokenizer alone, never on its neighbours.
    """
    controls = controls_for(tokenizer, {m["role"] for messages in conversations for m in messages} | {"assistant"})
    frame = {role: len(head) + 2 + len(controls.newline) for role, head in controls.headers.items()}
    rate = characters_per_token(tokenizer)
    ids: list[list[int]] = [[] for _ in conversations]
    ends = [0] * len(conversations)  # messages read
    counts = [sum([frame[m["role"]] for m in messages]) for messages in conversations]  # control tokens are certain
    bound = bound_of(tokenizer)
    for i, messages in enumerate(conversations):
        longest = max([m["content"] for m in messages], key=len, default="")
        if counts[i] <= max_length < counts[i] + 4 * len(longest) / bound.bytes_per_token:  # worth a closer look
            # One less, for a token that may begin in the header before the text.
            fewest = max(0, bound.fewest_tokens(longest.strip()) - 1)
            counts[i] += fewest if counts[i] + fewest > max_length else 0
    waiting = [i for i, messages in enumerate(conversations) if messages and counts[i] <= max_length]
    while waiting:
        spans = []
        for i in waiting:
            start, room = ends[i], max_length - counts[i]
            ends[i] = _end(conversations[i], start, room * rate)
            spans.append(conversations[i][start : ends[i]])
        still = []
        for i, span, fresh in zip(waiting, spans, _read(tokenizer, controls, spans), strict=True):
            ids[i] += fresh
            counts[i] += len(fresh) - sum([frame[m["role"]] for m in span])
            if counts[i] <= max_length and ends[i] < len(conversations[i]):
                still.append(i)
        waiting = still
    return _measured(controls, conversations, ids, ends, counts, max_length)


def _end(messages: Sequence[Message], start: int, budget: float) -> int:
    """How far to read from `start`: whole messages, at least one, until `budget` characters are passed."""
    end = start
    while end < len(messages) and (budget > 0 or end == start):
        budget -= len(messages[end]["content"])
        end += 1
    return end


def _measured(
    controls: Controls,
    conversations: Sequence[Sequence[Message]],
    ids: list[list[int]],
    ends: list[int],
    counts: list[int],
    max_length: int,
) -> list[Measured]:
    complete = [end == len(messages) for end, messages in zip(ends, conversations, strict=True)]
    whole = [i for i, done in enumerate(complete) if done]
    masks = dict(zip(whole, _masks(controls, [conversations[i] for i in whole], [ids[i] for i in whole]), strict=True))
    found = []
    for i, done in enumerate(complete):
        fits = done and counts[i] <= max_length
        encoding = Encoded(ids[i], masks[i].tolist()) if fits else None
        found.append(Measured(encoding, counts[i], int(masks[i].sum()) if done else None, done))
    return found


def _masks(
    controls: Controls, conversations: Sequence[Sequence[Message]], ids: Sequence[list[int]]
) -> list[np.ndarray]:
    """Which ids are supervised: from behind each assistant's header to its `<|im_end|>`; one (T,) array each."""
    if not ids:
        return []
    flat = np.fromiter(chain.from_iterable(ids), np.int32, sum(map(len, ids)))
    edges = np.cumsum([len(row) for row in ids])[:-1]
    assistant = np.array([m["role"] == "assistant" for messages in conversations for m in messages], bool)
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
        return [_one_by_one(tokenizer, controls, span) for span in spans]
    rows = _in_one_piece(tokenizer, spans)
    specials = np.zeros(len(tokenizer), bool)
    specials[list(controls.forbidden)] = True
    flat = np.fromiter(chain.from_iterable(rows), np.int32, sum(map(len, rows)))
    starts = np.cumsum([0, *map(len, rows)])[:-1]
    found = np.add.reduceat(specials[flat], starts, dtype=np.int64).tolist() if rows else []
    # A text that spells a special token shows as one too many; it is read again message by message, which defuses it.
    return [
        row if number == 2 * len(span) else _one_by_one(tokenizer, controls, span)
        for row, number, span in zip(rows, found, spans, strict=True)
    ]


def _in_one_piece(tokenizer: PreTrainedTokenizerBase, spans: Sequence[Sequence[Message]]) -> list[list[int]]:
    texts = ["".join([f"{IM_START}{m['role']}\n{m['content'].strip()}{IM_END}\n" for m in span]) for span in spans]
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False
    # The backend without transformers' wrapper, and without character offsets: 40 % faster.
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _one_by_one(tokenizer: PreTrainedTokenizerBase, controls: Controls, span: Sequence[Message]) -> list[int]:
    texts = text_ids(tokenizer, controls, [(m["role"], m["content"].strip()) for m in span])
    return assembled(controls, span, texts).input_ids


@lru_cache(maxsize=8)
def reads_in_one_piece(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether this tokenizer gives the same ids for a whole conversation as for its messages one by one."""
    span = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate((*PROBE, *PROBE))]
    controls = controls_for(tokenizer, {"user", "assistant"})
    return _in_one_piece(tokenizer, [span])[0] == _one_by_one(tokenizer, controls, span)


@lru_cache(maxsize=8)
def characters_per_token(tokenizer: PreTrainedTokenizerBase) -> float:
    """Characters per token on a fixed English text: how much to read at first to see whether a text can fit."""
    texts = PROBE[:2]
    ids = text_ids(tokenizer, controls_for(tokenizer, {"user"}), [("user", text) for text in texts])
    return sum(map(len, texts)) / sum(map(len, ids))
