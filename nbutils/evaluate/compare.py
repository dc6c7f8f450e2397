"""Items of a task as a table, and intervals and paired differences from it by the bootstrap:
Efron & Tibshirani 1993, percentile intervals.

What is resampled is a group of items that belong together (the replies of one conversation), or the item where there
are no groups. Two models are compared on the same resamples, so that what makes an item hard for both cancels out.
Plain percentile intervals are too narrow for few groups (equal models differ in 10 % of comparisons on 10); they are
taken further out, as far as a t interval is wider than a normal one (Hesterberg 2015, "What Teachers Should Know About
the Bootstrap", section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from nbutils.core.files import Json
from nbutils.core.tasks import item_label

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


def sums_of(table: pd.DataFrame, metric: Metric) -> np.ndarray:
    """Sums (G, 2) of a metric's values and weights over each group of a table's items."""
    _, group = np.unique(table["group"], return_inverse=True)
    columns = (table[name].to_numpy(float) for name in (metric.name, f"{metric.name}_weight"))
    return np.stack([np.bincount(group, column) for column in columns], axis=1)


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


KINDS = {"mean": "mean", "perplexity": "perplexity", "weighted_perplexity": "perplexity", "bits_per_byte": "bits"}
"""lm-eval's aggregations that are a function of two sums, by the name of that function here."""


@dataclass(frozen=True)
class Metric:
    """A metric: its `kind` says how sums of values and weights become one number; `none` if they can't."""

    name: str
    kind: str
    higher_is_better: bool


def combine(kind: str, sums: np.ndarray) -> np.ndarray:
    """The metric (…,) from sums of per-item values and weights (…, 2)."""
    ratio = sums[..., 0] / sums[..., 1]
    if kind == "perplexity":
        return np.exp(-ratio)
    return -ratio / math.log(2) if kind == "bits" else ratio


def metrics_of(task: Any) -> dict[str, Metric]:
    """The metrics of a task of lm-eval, by name."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    names = {function: name for name, function in AGGREGATION_REGISTRY.items()}
    better = task.higher_is_better()
    return {
        name: Metric(name, KINDS.get(names.get(function, ""), "none"), bool(better.get(name, True)))
        for name, function in task.aggregation().items()
    }


def item_rows(samples: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metric], groups: str) -> list[Json]:
    """One row for each item that lm-eval logged, in the order of the task's documents.

    Columns: `doc_id`, `filter`, `group` (what is resampled as one: the document's column `groups`, or the item),
    `loglikelihoods` of all requests, `gold` where one of them is right, `response` of a generation, and for each metric
    that is a function of sums `<metric>` and `<metric>_weight`.
    """
    rows = []
    for sample in sorted(samples, key=lambda s: (s["filter"], s["doc_id"])):
        responses = sample["filtered_resps"]
        written = isinstance(responses[0], str)
        row = {
            "doc_id": sample["doc_id"],
            "filter": sample["filter"],
            "group": sample["doc"][groups] if groups else sample["doc_id"],
            "loglikelihoods": [] if written else [float(r[0] if isinstance(r, tuple | list) else r) for r in responses],
            "gold": sample["target"] if isinstance(sample["target"], int) else None,
            "response": responses[0] if written else "",
        }
        for name, metric in metrics.items():
            if metric.kind != "none":
                found = sample.get(name, math.nan)
                row[name], row[f"{name}_weight"] = map(float, found if isinstance(found, tuple | list) else (found, 1))
        rows.append(row)
    return rows


def flagged_items(ledger: Path, tasks: Mapping[str, Any]) -> dict[str, set[int]]:
    """Task → numbers of its items that the ledger of the data stage names as the reason why a row was dropped.

    Those rows were not trained on; their neighbours in the same source may still be close to the item.
    """
    if not ledger.is_file():
        return {}
    labels = set(pd.read_parquet(ledger, columns=["matched_items"])["matched_items"].explode())
    return {
        name: {number for number in range(len(task.eval_docs)) if item_label(name, number) in labels}
        for name, task in tasks.items()
    }
