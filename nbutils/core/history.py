"""A training history: the rows of `train/metrics.jsonl` as arrays, without the steps that a resume repeated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from nbutils.core.errors import UserError
from nbutils.core.files import read_jsonl, shown

Row = Mapping[str, Any]
SECONDS = ("data", "forward_backward", "optimizer", "evaluation", "checkpoint")
"""The parts that a row's `seconds` is divided into: wall seconds since the row before."""


@dataclass(frozen=True)
class Series:
    """One quantity over optimizer steps: `steps` (N,) ascending and `values` (N,) of the same length."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def finite(self) -> Series:
        """Only the points whose value is a finite number."""
        keep = np.isfinite(self.values)
        return Series(self.steps[keep], self.values[keep])

    @property
    def last(self) -> float | None:
        """The last finite value."""
        finite = self.finite.values
        return float(finite[-1]) if len(finite) else None

    @property
    def ends_finite(self) -> bool:
        """Whether the last point has a finite value: what a run ended with, and no value from before it broke."""
        return bool(len(self)) and bool(np.isfinite(self.values[-1]))

    def at(self, step: float) -> float | None:
        """The finite value at `step`, or the nearest one before it (the first where none is before)."""
        finite = self.finite
        if not len(finite):
            return None
        return float(finite.values[max(0, int(np.searchsorted(finite.steps, step, side="right")) - 1)])


@dataclass(frozen=True)
class History:
    """What a run logged: one row per logged step, one per evaluation, and the steps at which sessions began.

    `reached` is the step that the run is known to have taken, where that lies behind its last row: a pause logs none.
    """

    train: list[Row] = field(default_factory=list)
    evals: list[Row] = field(default_factory=list)
    sessions: list[Row] = field(default_factory=list)
    reached: int = 0
    _columns: dict[tuple[str, str, bool], Series] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, rows: Iterable[Row] | History) -> History:
        """A history from rows as they were written.

        A session that starts at step s repeats what an interrupted one had logged beyond s: those rows are dropped,
        as they stand for work that was lost. Of two rows with the same step the later one counts.
        """
        if isinstance(rows, History):
            return rows
        train: dict[int, Row] = {}
        evals: dict[int, Row] = {}
        sessions: list[Row] = []
        for row in rows:
            kind = row.get("kind")
            if kind == "session":
                start = int(row.get("step", 0))
                train, evals = ({s: r for s, r in log.items() if s <= start} for log in (train, evals))
                sessions.append(row)
            elif kind in ("train", "eval"):
                log = train if kind == "train" else evals
                log.pop(int(row["step"]), None)
                log[int(row["step"])] = row
        return cls(_ascending(train), _ascending(evals), sessions)

    @classmethod
    def read(cls, path: Path) -> Self | History:
        """The history in a `metrics.jsonl`; UserError where there is none or where it has no row of training."""
        if not path.is_file():
            raise UserError(f"{shown(path)} does not exist: run notebooks/02_train_sft.ipynb first.")
        try:
            history = cls.of(read_jsonl(path))
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # no JSON, or rows of another kind
            raise UserError(
                f"{shown(path)} is damaged ({error}): take that line out, or run notebooks/02_train_sft.ipynb again."
            ) from None
        if not history.train and not history.evals:
            raise UserError(
                f"{shown(path)} has no row of training or evaluation yet: let notebooks/02_train_sft.ipynb run on."
            )
        return history

    @property
    def last_step(self) -> int:
        """The last optimizer step that was taken; 0 for an empty history."""
        return max([self.reached, *(int(rows[-1]["step"]) for rows in (self.train, self.evals) if rows)])

    @property
    def resumes(self) -> list[int]:
        """The steps at which a later session went on."""
        return [int(row.get("step", 0)) for row in self.sessions[1:]]

    @property
    def counts_all_tokens(self) -> bool:
        """Whether the training loss counts all tokens and not the assistant's alone, as evaluation does.

        As the newest session says; of runs of an earlier smallchat, by the share of tokens that were counted.
        """
        if self.sessions and "supervise" in self.sessions[-1]:
            return bool(self.sessions[-1]["supervise"] == "all")
        supervised, total = self.series("supervised_tokens").last, self.series("total_tokens").last
        return bool(supervised and total and supervised > 0.95 * total)

    def series(self, name: str, *, x: str = "step") -> Series:
        """A quantity of the training rows; `x` is what it is drawn over (`step`, `total_tokens`, `elapsed`)."""
        return self._column(name, x, evaluation=False)

    def eval_series(self, name: str, *, x: str = "step") -> Series:
        """A quantity of the evaluation rows, in `x` of the training row at or before each evaluation."""
        found = self._column(name, "step", evaluation=True)
        if x == "step" or not len(found):
            return found
        steps, places = self.series(x).steps, self.series(x).values
        if not len(steps):
            return Series(found.steps[:0], found.values[:0])
        # np.interp keeps the ends; an evaluation at step 0 comes before the first logged row.
        return Series(np.interp(found.steps, np.r_[0, steps], np.r_[0.0, places]), found.values)

    @property
    def elapsed(self) -> float | None:
        """Wall seconds of the whole run: to its last training row, and in evaluations that lie outside all of them."""
        last = self.series("elapsed").last
        return None if last is None else last + self._evaluations_outside

    def seconds(self) -> dict[str, float]:
        """Wall seconds by part over the whole run, and `other` for what no part accounts for."""
        return dict(self._seconds)

    @cached_property
    def _evaluations_outside(self) -> float:
        """Seconds of the evaluations that no training row counts: before training began, and behind its last row."""
        last = int(self.train[-1]["step"]) if self.train else 0
        return math.fsum(r.get("seconds") or 0.0 for r in self.evals if int(r["step"]) == 0 or int(r["step"]) >= last)

    @cached_property
    def _seconds(self) -> dict[str, float]:
        rows = [row.get("seconds") or {} for row in self.train]
        parts = {part: math.fsum(row.get(part) or 0.0 for row in rows) for part in SECONDS}
        parts["evaluation"] += self._evaluations_outside
        elapsed = self.elapsed or 0.0
        other = elapsed - math.fsum(parts.values())
        return parts | ({"other": other} if other > 0.01 * max(elapsed, 1e-9) else {})

    def _column(self, name: str, x: str, *, evaluation: bool) -> Series:
        key = (name, x, evaluation)  # read once: a long run has 200,000 rows
        if key not in self._columns:
            self._columns[key] = _series(self.evals if evaluation else self.train, name, x)
        return self._columns[key]

    def skipped_at(self) -> list[int]:
        """The logged steps since whose predecessor fp16 steps were skipped (their gradients had overflowed)."""
        skipped = self.series("skipped_steps").finite
        grown = np.diff(np.r_[0.0, skipped.values]) > 0
        return [int(step) for step in skipped.steps[grown]]


def smoothed(values: np.ndarray, span: float | None = None, steps: np.ndarray | None = None) -> np.ndarray:
    """Exponential moving average (N,) with its start corrected; gaps (NaN) are passed over.

    `span` is the number of points that it averages over: by default 4 % of them, at least 3, of a few a third. With
    `steps` (N,) a value fades with its distance in steps, and counts for the steps since the row before: rows at 1, 2,
    3, 25, 50 … would otherwise hold the line up at the first three.
    Source: the bias correction of Adam (Kingma & Ba 2015), as TensorBoard's smoothing has it.
    """
    span = span if span is not None else max(1.0, min(3.0, len(values) / 3), len(values) * 0.04)
    decay = 1 - 2 / (span + 1)
    result = np.full(len(values), np.nan)
    places = np.flatnonzero(np.isfinite(values))
    total = weight = 0.0
    for i, value, gap in zip(places.tolist(), values[places].tolist(), _gaps(places, steps), strict=True):
        kept = decay**gap
        total = kept * total + (1 - kept) * value
        weight = kept * weight + (1 - kept)
        result[i] = total / weight if weight else value
    return result


def _gaps(places: np.ndarray, steps: np.ndarray | None) -> list[float]:
    """How far each row stands behind the one before, in the usual distance of two; the first as far as the second."""
    if steps is None or len(places) < 2:
        return [1.0] * len(places)
    distances = np.maximum(np.diff(steps[places]), 0.0)
    usual = float(np.median(distances)) or 1.0
    return (np.r_[distances[0], distances] / usual).tolist()


def trend(series: Series) -> Series:
    """The smoothed course of a series' finite values: its points where they are few, else at most 2,000."""
    finite = series.finite
    if len(finite) < 5:
        return finite
    if len(finite) > 2000:  # first the means of equal stretches, each far shorter than what is averaged over after
        edges = np.linspace(0, len(finite), 2001).astype(int)
        means = np.add.reduceat(finite.values, edges[:-1]) / np.diff(edges)
        finite = Series(finite.steps[edges[1:] - 1], means)
    return Series(finite.steps, smoothed(finite.values, steps=finite.steps))


def thinned(series: Series, points: int = 2000) -> Series:
    """At most about `points` points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(series) <= points:
        return series
    edges = np.linspace(0, len(series), points // 2 + 1).astype(int)
    keep: list[int] = []
    for a, b in pairwise(edges):
        stretch = series.values[a:b]
        if np.isfinite(stretch).any():
            low, high = int(np.nanargmin(stretch)), int(np.nanargmax(stretch))
            keep += [a + i for i in sorted({low, high})]
    if keep and keep[-1] != len(series) - 1:
        keep.append(len(series) - 1)  # what a run ended with
    return Series(series.steps[keep], series.values[keep])


def _series(rows: Sequence[Row], name: str, x: str) -> Series:
    present = [row for row in rows if name in row and x in row]
    return Series(*(np.array([row[column] for row in present], dtype=float) for column in (x, name)))  # null is NaN


def _ascending(log: dict[int, Row]) -> list[Row]:
    return [log[step] for step in sorted(log)]
