"""Which rows go into which optimizer step, rank and micro-batch: a pure function of lengths, seed and epoch.

A step is a set of rows of about `tokens_per_step` tokens and does not depend on the number of processes; only how its
rows are dealt out to ranks does. So every row is seen exactly once an epoch at any world size, and a run that is
resumed at another world size sees the same remaining rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from nbutils.train.dataset import Microbatch, TokenRows, empty_microbatch
from nbutils.train.settings import TrainSettings

PARTS, OVERHEAD = (1, 2, 3, 4), 160
"""Into how many parts a micro-batch may be cut where that balances ranks, and how many tokens one more costs about."""


@dataclass(frozen=True)
class BatchPlan:
    """The plan of a training set: row lengths in tokens, the budgets, and what follows from them."""

    lengths: np.ndarray  # (rows,) tokens
    tokens_per_step: int
    tokens_per_microbatch: int
    seed: int

    @classmethod
    def of(cls, rows: TokenRows, settings: TrainSettings) -> BatchPlan:
        """The plan that these settings ask for."""
        return cls(rows.lengths(), settings.tokens_per_step, settings.tokens_per_microbatch, settings.seed)

    @property
    def block_budget(self) -> int:
        """Padded tokens a block of near-equal rows may hold: a micro-batch, and never more than a step."""
        return min(self.tokens_per_microbatch, self.tokens_per_step)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch, the same for every epoch."""
        blocks = len(blocks_of(np.sort(self.lengths), self.block_budget)) - 1
        return max(1, min(blocks, round(int(self.lengths.sum()) / self.tokens_per_step)))

    def total_steps(self, epochs: float, max_steps: int = 0) -> int:
        """Optimizer steps of a run: `max_steps` where it is given, else so many epochs, the last step included."""
        return max_steps or math.ceil(epochs * self.steps_per_epoch)

    def steps(self, epoch: int) -> list[np.ndarray]:
        """Row numbers of each optimizer step of an epoch; every row stands in exactly one step."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.lengths))
        order = order[np.argsort(self.lengths[order], kind="stable")]  # by length, ties in random order
        edges = blocks_of(self.lengths[order], self.block_budget)
        blocks = [order[a:b] for a, b in pairwise(edges)]
        blocks = [blocks[i] for i in rng.permutation(len(blocks))]
        tokens = np.array([self.lengths[block].sum() for block in blocks])
        cuts = even_cuts(tokens, self.steps_per_epoch)
        return [np.concatenate(blocks[a:b]) for a, b in pairwise(cuts)]

    def deal(self, rows: np.ndarray, world_size: int) -> list[list[np.ndarray]]:
        """The micro-batches of each rank for the rows of one step: those with which the busiest rank has least to do.

        A rank may get none; it then takes part in the step with a micro-batch without labels.
        """
        ordered = rows[np.argsort(-self.lengths[rows], kind="stable")][::-1]
        largest = min(self.tokens_per_microbatch, -(-int(self.lengths[rows].sum()) // world_size))
        dealt = [self._balanced(ordered, world_size, largest // parts) for parts in PARTS]
        return min(dealt, key=lambda way: way[0])[1]

    def _balanced(self, ordered: np.ndarray, world_size: int, budget: int) -> tuple[int, list[list[np.ndarray]]]:
        """What the busiest rank has to do, in tokens, and the micro-batches of each."""
        batches = [ordered[a:b] for a, b in pairwise(blocks_of(self.lengths[ordered], budget))]
        ranks: list[list[np.ndarray]] = [[] for _ in range(world_size)]
        loads = [0] * world_size
        for batch in sorted(batches, key=self.padded, reverse=True):  # longest processing time first
            lightest = loads.index(min(loads))
            ranks[lightest].append(batch)
            loads[lightest] += self.padded(batch) + OVERHEAD
        return max(loads), ranks

    def microbatches(self, rows: np.ndarray) -> list[np.ndarray]:
        """The micro-batches of one step in a single process: row numbers."""
        return self.deal(rows, 1)[0]

    def padded(self, rows: np.ndarray) -> int:
        """Tokens of a micro-batch with its padding."""
        return int(len(rows) * self.lengths[rows].max())

    def padding(self) -> float:
        """Share of what a single process computes in the first epoch that is padding."""
        padded = sum(self.padded(batch) for rows in self.steps(0) for batch in self.microbatches(rows))
        return float(1 - self.lengths.sum() / padded)


def blocks_of(lengths: Sequence[int] | np.ndarray, budget: int) -> list[int]:
    """Edges of consecutive blocks of ascending lengths with count x longest <= budget; a longer row stands alone."""
    edges = [0]
    for index, length in enumerate(lengths):
        if index > edges[-1] and (index - edges[-1] + 1) * int(length) > budget:
            edges.append(index)
    return [*edges, len(lengths)] if len(lengths) else edges


def even_cuts(tokens: np.ndarray, groups: int) -> list[int]:
    """Edges that cut a sequence of blocks into `groups` non-empty runs of about equal token counts."""
    ends, i = np.cumsum(tokens), np.arange(groups - 1)
    cuts = np.searchsorted(ends, ends[-1] * (i + 1) / groups) + 1
    cuts = np.maximum.accumulate(cuts - i) + i  # no run is empty, from the left
    cuts = np.minimum(cuts, len(tokens) - groups + 1 + i)  # and from the right
    return [0, *map(int, cuts), len(tokens)]


@dataclass
class StepBatch:
    """What one rank computes in one optimizer step, and what all ranks count together."""

    microbatches: list[Microbatch]
    rows: list[np.ndarray]
    """Row numbers of each micro-batch; a dummy one has no entry."""
    supervised_tokens: int
    """Labels of the step over all ranks: the loss is their mean."""
    tokens: int
    """Tokens of the step over all ranks, without padding."""
    padded_tokens: int
    attended: int
    """Sum of the squared lengths of the step's rows: what attention costs."""
    seconds: float = 0.0
    """What making it took."""


@dataclass
class StepLoader:
    """Iterates over the optimizer steps of one epoch, from a given step on; `set_epoch` chooses the epoch.

    Its order is a function of (seed, epoch), so the position after a resume is the step number and nothing else.
    """

    rows: TokenRows
    plan: BatchPlan
    rank: int = 0
    world_size: int = 1
    first_step: int = 0

    def __post_init__(self) -> None:
        self.set_epoch(self.first_step // len(self))
        self.supervised = self.rows.supervised_counts()

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[StepBatch]:
        first_epoch, offset = divmod(self.first_step, len(self))
        steps = self.plan.steps(self.epoch)
        for rows in steps[offset if self.epoch == first_epoch else 0 :]:
            yield self.step_batch(rows)

    def step_batch(self, rows: np.ndarray) -> StepBatch:
        """The step made of these rows, as this rank sees it."""
        started, plan = time.perf_counter(), self.plan
        dealt = plan.deal(rows, self.world_size)
        mine = dealt[self.rank]
        padded = [len(batch) * self.rows.width(int(plan.lengths[batch].max())) for rank in dealt for batch in rank]
        return StepBatch(
            microbatches=[self.rows.tensors(batch) for batch in mine] or [empty_microbatch()],
            rows=mine,
            supervised_tokens=int(self.supervised[rows].sum()),
            tokens=int(plan.lengths[rows].sum()),
            padded_tokens=sum(padded),
            attended=int((plan.lengths[rows].astype(np.int64) ** 2).sum()),
            seconds=time.perf_counter() - started,
        )
