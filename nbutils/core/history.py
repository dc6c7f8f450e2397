"""A training history: the rows of `train/metrics.jsonl` as arrays, without the steps that a resume repeated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from nbutils.core.training_log import SECONDS, Metric

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Series:
    """One quantity over optimizer steps: `steps` (N,) ascending and finite `values` (N,) of the same length.

    `broken` (M,) are steps whose value is no finite number. `ended` says whether the last point has one: its value is
    what a run ended with, and not from before it broke.
    """

    steps: np.ndarray
    values: np.ndarray
    broken: np.ndarray
    ended: bool

    @classmethod
    def of(cls, steps: np.ndarray, values: np.ndarray) -> Series:
        """A series from all its points."""
        finite = np.isfinite(values)
        return cls(steps[finite], values[finite], steps[~finite], bool(finite[-1:].any()))

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> float | None:
        """The last value."""
        return float(self.values[-1]) if len(self) else None

    def at(self, step: float) -> float:
        """The value at `step`, or the nearest one before it (the first where none is before)."""
        return float(self.values[max(0, int(np.searchsorted(self.steps, step, side="right")) - 1)])


@dataclass(frozen=True, eq=False)
class History:
    """What a run logged: one row per logged step, one per evaluation, and the steps at which sessions began.

    `reached` is the step that the run is known to have taken, where that is behind its last row: a pause logs none.
    `chosen` is the step of the final model, known once training has ended.
    """

    train: list[Row]
    evals: list[Row]
    sessions: list[Row]
    reached: int = 0
    chosen: int | None = None

    @classmethod
    def of(cls, rows: Iterable[Row]) -> History:
        """A history from rows as they were written.

        A session that starts at step s repeats what an interrupted one had logged beyond s: those rows are dropped,
        since that work was lost. Of two rows with the same step the later one counts.
        """
        logs: dict[str, dict[int, Row]] = {"train": {}, "eval": {}, "end": {}}
        sessions: list[Row] = []
        for row in rows:
            kind = row.get("kind")
            if kind == "session":
                start = int(row["step"])
                logs = {name: {s: r for s, r in log.items() if s <= start} for name, log in logs.items()}
                sessions.append(row)
            elif kind in logs:
                logs[kind][int(row["step"])] = row
        train, evals, ends = ([log[step] for step in sorted(log)] for log in logs.values())
        return cls(train, evals, sessions, chosen=int(ends[-1]["chosen"]) if ends else None)

    def until(self, step: int | None) -> History:
        """The history as it was at a step; all of it for None."""
        if step is None:
            return self
        train, evals = ([row for row in rows if int(row["step"]) <= step] for rows in (self.train, self.evals))
        return History(train, evals, self.sessions, chosen=step)

    @property
    def last_step(self) -> int:
        """The last optimizer step that was taken; 0 for an empty history."""
        return max([self.reached, *(int(rows[-1]["step"]) for rows in (self.train, self.evals) if rows)])

    @property
    def earlier_model(self) -> int | None:
        """The step of the final model where that is not the last; None where it is, or training has not ended."""
        return None if self.chosen == self.last_step else self.chosen

    @property
    def choices(self) -> int:
        """How many evaluations there were after training began."""
        return sum(row["step"] > 0 for row in self.evals)

    @property
    def resumes(self) -> list[int]:
        """The steps at which a later session resumed."""
        return [int(row["step"]) for row in self.sessions[1:]]

    @property
    def counts_all_tokens(self) -> bool:
        """Whether the training loss counts all tokens and not the assistant's alone, as evaluation does."""
        return bool(self.sessions) and self.sessions[-1].get("supervise") == "all"

    def holds(self, metric: Metric) -> bool:
        """Whether the run logged or evaluated a metric."""
        return any(map(len, (self.series(metric.column), self.eval_series(metric.evaluation))))

    def series(self, name: str, *, x: str = "step") -> Series:
        """A quantity of the training rows; `x` is what it is drawn over (`step`, `total_tokens`, `elapsed`)."""
        return self._column(name, x, "train")

    def eval_series(self, name: str, *, x: str = "step") -> Series:
        """A quantity of the evaluation rows, in `x` of the training row at or before each evaluation."""
        found = self._column(name, "step", "evals")
        if x == "step":
            return found
        over = self.series(x)
        # np.interp keeps the ends; an evaluation at step 0 comes before the first logged row.
        return replace(found, steps=np.interp(found.steps, np.r_[0, over.steps], np.r_[0.0, over.values]))

    @property
    def elapsed(self) -> float | None:
        """Wall seconds of the whole run: to its last training row, and in evaluations outside all of them."""
        last = self.series("elapsed").last
        return None if last is None else last + self._evaluations_outside

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Wall seconds by part over the whole run, and `other` for what no part accounts for."""
        rows = [row.get("seconds") or {} for row in self.train]
        parts = {part: math.fsum(row.get(part) or 0.0 for row in rows) for part in SECONDS}
        parts["evaluation"] += self._evaluations_outside
        elapsed = self.elapsed or 0.0
        other = elapsed - math.fsum(parts.values())
        return parts | ({"other": other} if other > 0.01 * elapsed else {})

    @cached_property
    def _evaluations_outside(self) -> float:
        """Seconds of the evaluations that no training row counts: before training began, and behind its last row."""
        last = int(self.train[-1]["step"]) if self.train else 0
        return math.fsum(r.get("seconds") or 0.0 for r in self.evals if int(r["step"]) == 0 or int(r["step"]) >= last)

    @lru_cache  # noqa: B019 — a long run has 200,000 rows
    def _column(self, name: str, x: str, kind: str) -> Series:
        rows = [row for row in getattr(self, kind) if name in row and x in row]
        steps, values = (np.array([row[column] for row in rows], dtype=float) for column in (x, name))
        return Series.of(steps, values)  # null is NaN


def trend(series: Series) -> Series:
    """The smoothed course of a series: its points where they are fewer than five.

    An exponential moving average over 4 % of the points (at least 3, of a few a third), with its start corrected.
    Source: the bias correction of Adam (Kingma & Ba 2015), as TensorBoard's smoothing has it.
    """
    if len(series) < 5:
        return series
    # Each point counts for the steps since the row before, and fades with its distance in steps: rows at 1, 2, 3, 25 …
    # would otherwise hold the line up at the first three. (pandas' `ewm(times=…)` counts every row alike.)
    decay = 1 - 2 / (max(min(3.0, len(series) / 3), len(series) * 0.04) + 1)
    distances = np.maximum(np.diff(series.steps), 0.0)
    gaps = np.r_[distances[0], distances] / (float(np.median(distances)) or 1.0)
    smoothed = []
    total = weight = 0.0
    for value, gap in zip(series.values.tolist(), gaps.tolist(), strict=True):
        kept = decay**gap
        total = kept * total + (1 - kept) * value
        weight = kept * weight + (1 - kept)
        smoothed.append(total / weight if weight else value)
    return replace(series, values=np.array(smoothed))


def thinned(series: Series, points: int = 2000) -> Series:
    """At most about `points` of a series: of each stretch the lowest and highest, so that no spike is lost."""
    if len(series) <= points:
        return series
    stretches = np.arange(len(series)) * (points // 2) // len(series)
    order = np.lexsort((series.values, stretches))
    begin = np.flatnonzero(np.diff(stretches, prepend=-1))
    kept = np.unique(np.r_[order[begin], order[begin - 1], len(series) - 1])  # and what a run ended with
    return replace(series, steps=series.steps[kept], values=series.values[kept])
