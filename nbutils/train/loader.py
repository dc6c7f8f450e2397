"""The training data as the trainer wants it: optimizer steps, each a list of this rank's micro-batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbutils.train.batches import BatchPlan
from nbutils.train.dataset import TokenRows, empty_microbatch


@dataclass
class StepBatch:
    """What one rank computes in one optimizer step, and what all ranks count together."""

    microbatches: list[dict[str, Any]]
    rows: list[np.ndarray]
    """Row numbers of each micro-batch; of a dummy one none."""
    supervised_tokens: int
    """Labels of the step over all ranks: the loss is their mean."""
    tokens: int
    """Tokens of the step over all ranks, without padding."""
    padded_tokens: int
    attended: int
    """Sum of B x T x T over the micro-batches of all ranks: what attention costs."""


class StepLoader:
    """Iterates over the optimizer steps of one epoch, from a given step on; `set_epoch` chooses the epoch.

    Its order is a function of (seed, epoch), so the position after a resume is the step number and nothing else.
    """

    def __init__(
        self,
        rows: TokenRows,
        plan: BatchPlan,
        rank: int,
        world_size: int,
        first_step: int = 0,
        seconds: Callable[[str, float], None] = lambda part, seconds: None,
    ) -> None:
        self.dataset = rows
        self.plan = plan
        self.rank = rank
        self.world_size = world_size
        self.first_step = first_step
        self.epoch = first_step // plan.steps_per_epoch
        self.supervised = rows.supervised_counts()
        self.note_seconds = seconds

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[StepBatch]:
        first_epoch, offset = divmod(self.first_step, len(self))
        steps = self.plan.steps(self.epoch)
        for rows in steps[offset if self.epoch == first_epoch else 0 :]:
            started = time.perf_counter()
            batch = self.step_batch(rows)
            self.note_seconds("data", time.perf_counter() - started)
            yield batch

    def step_batch(self, rows: np.ndarray) -> StepBatch:
        """The step made of these rows, as this rank sees it."""
        dealt = self.plan.deal(rows, self.world_size)
        batches = [batch for rank in dealt for batch in rank]
        mine = dealt[self.rank]
        return StepBatch(
            microbatches=[self.dataset.tensors(batch) for batch in mine] or [empty_microbatch()],
            rows=mine or [np.array([], dtype=np.int64)],
            supervised_tokens=int(self.supervised[rows].sum()),
            tokens=int(self.plan.lengths[rows].sum()),
            padded_tokens=sum(self.plan.padded(batch) for batch in batches),
            attended=sum(self.plan.padded(batch) * int(self.plan.lengths[batch].max()) for batch in batches),
        )
