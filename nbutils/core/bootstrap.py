"""Intervals and paired differences from sums over items, by the bootstrap (percentile intervals): Efron & Tibshirani
1993.

What is resampled is a group of items that belong together (the replies of one conversation), or the item where there
are no groups. Two models are compared on the same resamples, so that what makes an item hard for both cancels out.
Plain percentile intervals are too narrow for few groups (equal models differ in 10 % of comparisons on 10); they are
taken further out, as far as a t interval is wider than a normal one (Hesterberg 2015, "What Teachers Should Know About
the Bootstrap", section 4.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
FEWEST_GROUPS = 20
"""Groups below which no word is said of a difference: no bootstrap knows how much so few would vary."""
TOO_FEW = "too few items"
FEW_PATTERNS = 64
"""Distinct groups up to which the resampled counts are drawn instead of the groups: the same distribution, faster."""
CHUNK_NUMBERS = 4_000_000
"""Resampled indices held at once."""


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error and 95 % interval, and the number of groups behind them."""

    value: float
    stderr: float
    low: float
    high: float
    groups: int


def interval(sums: np.ndarray, kind: str, resamples: int, seed: int) -> Estimate:
    """A metric with its bootstrap interval, from its sums over groups (G, 2)."""
    value = combine(kind, np.array([column.sum() for column in sums.T]))
    return _estimate(float(value), combine(kind, resampled(sums, resamples, seed)), len(sums))


def paired_difference(a: np.ndarray, b: np.ndarray, kind: str, resamples: int, seed: int) -> Estimate:
    """Metric of `a` minus that of `b` on the same items, with the paired bootstrap's interval; sums are (G, 2)."""
    columns = np.hstack([a, b])  # (G, 4)
    total, drawn = columns.sum(axis=0), resampled(columns, resamples, seed)  # (4,), (R, 4)
    value = combine(kind, total[:2]) - combine(kind, total[2:])
    return _estimate(float(value), combine(kind, drawn[:, :2]) - combine(kind, drawn[:, 2:]), len(a))


def word_for(difference: Estimate, higher_is_better: bool) -> str:
    """`better`, `worse`, `not distinguishable` or `too few items`: of these two checkpoints on these items alone."""
    if difference.groups < FEWEST_GROUPS:
        return TOO_FEW
    if difference.low <= 0 <= difference.high:
        return "not distinguishable"
    return "better" if (difference.low > 0) == higher_is_better else "worse"


def resampled(columns: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Column sums (R, C) of `resamples` draws, with replacement, of as many rows of (G, C) as there are."""
    rng = np.random.default_rng(seed)
    count = len(columns)
    patterns, counts = np.unique(columns, axis=0, return_counts=True)
    if len(patterns) <= FEW_PATTERNS:
        return rng.multinomial(count, counts / count, size=resamples) @ patterns
    parts = []
    size = max(1, CHUNK_NUMBERS // count)
    for start in range(0, resamples, size):
        index = rng.integers(count, size=(min(size, resamples - start), count), dtype=np.int32)
        parts.append(np.stack([column[index].sum(axis=1) for column in columns.T], axis=1))
    return np.concatenate(parts)


def _estimate(value: float, drawn: np.ndarray, groups: int) -> Estimate:
    low, high = np.quantile(drawn, [tail_for(groups), 1 - tail_for(groups)])
    return Estimate(value, float(drawn.std(ddof=1)), float(low), float(high), groups)


def tail_for(groups: int) -> float:
    """Share of the resamples on each side of an interval: 2.5 % for many groups, less for few."""
    z, nu = NormalDist().inv_cdf((1 - LEVEL) / 2), max(1, groups - 1)
    # Student's t by its expansion around the normal quantile (Abramowitz & Stegun 26.7.5).
    t = z + (z**3 + z) / (4 * nu) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
    return NormalDist().cdf(t * (1 + 1 / nu) ** 0.5)


def combine(kind: str, sums: np.ndarray) -> np.ndarray:
    """The metric (…,) from sums of per-item values and weights (…, 2)."""
    ratio = sums[..., 0] / sums[..., 1]
    if kind == "perplexity":
        return np.exp(-ratio)
    return -ratio / math.log(2) if kind == "bits" else ratio
