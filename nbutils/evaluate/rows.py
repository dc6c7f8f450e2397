"""Planning of scoring: which requests share a row, and which rows share a batch. Pure Python, no tensors.

A row is a *trunk* of token ids read causally, and *branches* that each leave the trunk after some of its tokens: a
branch sees the trunk up to there and itself. Four continuations of one context are one row; so are all the turns of a
conversation with their alternatives, because each turn's context is a beginning of the next one's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from nbutils.core.errors import UserError

Ids = tuple[int, ...]

SHORTEST_SHARED = 8
"""Tokens of context below which sharing saves less than the mask costs."""
MOST_PADDING = 0.08
"""Share of a batch that may be padding, once it holds `WORTH_A_CALL` tokens."""
WORTH_A_CALL = 256
"""Tokens that keep a model busy enough for a call of their own."""
MASKED = 3.0
"""What attention with a mask costs for each pair of tokens, against its arithmetic (measured: 2.5 to 4 on CPUs)."""


@dataclass(frozen=True)
class Request:
    """Token ids of a context (never empty) and of the continuation (never empty) to be scored behind it."""

    context: Ids
    continuation: Ids

    @classmethod
    def fitted(cls, context: Sequence[int], continuation: Sequence[int], max_length: int) -> Request:
        """The request as stock cuts it: the last `max_length` + 1 tokens of both, the very last one never an input.

        UserError for a continuation that is empty or longer than `max_length`.
        """
        if not 0 < len(continuation) <= max_length:
            raise UserError(
                f"An item's answer of {len(continuation)} tokens does not fit max_length, which is {max_length}: raise "
                "max_length, or leave its task out of tasks."
            )
        kept = tuple(context[-(max_length + 1 - len(continuation)) :])
        return cls(kept, tuple(continuation))

    @cached_property
    def inputs(self) -> Ids:
        """What the model reads for this request alone."""
        return self.context + self.continuation[:-1]


@dataclass
class Row:
    """Input ids with their positions in the text, where the branch of each begins in the row, and what is scored.

    A token sees its branch up to itself, and as many tokens of the trunk as the position of the branch's first one
    says; on the trunk `begins` is 0. `scored` holds, for each request, the places in the row whose next-token
    distributions score its continuation.
    """

    trunk: Ids
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    scored: list[tuple[int, list[int]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def branched(self) -> bool:
        """Whether reading the row takes a mask."""
        return self.begins[-1] > 0

    def shared(self, request: Request) -> int:
        """Tokens of the request's input that the trunk begins with: the length of their longest common prefix."""
        return len(os.path.commonprefix([self.trunk, request.inputs]))  # noqa: RUF071 — of ids, not of paths

    def add(self, index: int, request: Request, shared: int = 0) -> None:
        """Scores a request of which the trunk holds the first `shared` tokens; the others become a branch."""
        rest, begin = request.inputs[shared:], len(self.ids)
        positions = [*range(shared), *range(begin, begin + len(rest))]
        self.scored.append((index, positions[len(request.context) - 1 :]))
        self.ids += rest
        self.positions += range(shared, len(request.inputs))
        self.begins += [begin] * len(rest)


def plan_rows(requests: Sequence[Request], *, longest: int, attention_even: float, share: bool = True) -> list[Row]:
    """Rows that score every request once.

    `longest` bounds a row that has branches (tokens); `attention_even` is the row length at which reading a token
    costs as much in attention as in everything else, by which the plan decides whether sharing pays; with `share`
    off, only what already lies on another request's tokens is shared, and no row needs a mask.
    """
    # Backwards in this order, sequences with a common beginning are neighbours, the longest of them first.
    order = sorted(
        range(len(requests)), key=lambda i: (requests[i].context, len(requests[i].continuation)), reverse=True
    )
    rows: list[Row] = []
    for index in order:
        request = requests[index]
        shared = rows[-1].shared(request) if rows else 0
        whole = shared == len(request.inputs)
        if not shared or not (whole or (share and _pays(rows[-1], request, shared, longest, attention_even))):
            rows.append(Row(request.inputs))
            shared = 0
        rows[-1].add(index, request, shared)
    return rows


def batches(rows: Iterable[Row], tokens_per_batch: int) -> Iterator[list[Row]]:
    """Rows of similar length, longest first; padded, a batch has at most `tokens_per_batch` tokens, or one row.

    A batch of some size ends early rather than pad more than `MOST_PADDING` of it. Rows that need a mask and rows that
    do not never meet.
    """
    for branched in (True, False):
        batch: list[Row] = []
        read = 0
        for row in sorted((row for row in rows if row.branched == branched), key=len, reverse=True):
            padded = (len(batch) + 1) * len(batch[0]) if batch else 0
            wasteful = read >= WORTH_A_CALL and padded - read - len(row) > MOST_PADDING * padded
            if padded > tokens_per_batch or wasteful:
                yield batch
                batch, read = [], 0
            batch.append(row)
            read += len(row)
        if batch:
            yield batch


def _pays(row: Row, request: Request, shared: int, longest: int, attention_even: float) -> bool:
    """Whether a branch of this row costs less than a row of the request's own.

    Costs are in tokens: a token's linear layers are 1, its attention (keys seen) / `attention_even`; a causal row sees
    half its square, a masked one all of it at `MASKED` times the price. With e = `attention_even` / `MASKED`, a row is
    full when its branches reach sqrt(T (T + e)) tokens for a trunk of T: there the cost for each branch is least.
    """
    alone, before, trunk = len(request.inputs), len(row), len(row.trunk)
    branch = alone - shared
    full = (trunk * (trunk + attention_even / MASKED)) ** 0.5
    if shared < SHORTEST_SHARED or before + branch > longest or before - trunk + branch > full:
        return False
    grown = MASKED * ((before + branch) ** 2 - before**2)  # as if the row had branches: the first is seldom the last
    return branch + grown / attention_even <= alone + 0.5 * alone**2 / attention_even
