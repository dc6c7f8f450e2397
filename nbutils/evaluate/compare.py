"""Items of a task as a table, and the sums over groups of them that are compared (`core/bootstrap`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nbutils.core.files import Json
from nbutils.core.tasks import item_label

KINDS = {"mean": "mean", "perplexity": "perplexity", "weighted_perplexity": "perplexity", "bits_per_byte": "bits"}
"""lm-eval's aggregations that are a function of two sums, by the name of that function here."""


@dataclass(frozen=True)
class Metric:
    """A metric: its `kind` says how sums of values and weights become one number; `none` if they can't."""

    name: str
    kind: str
    higher_is_better: bool


def sums_of(table: pd.DataFrame, metric: Metric) -> np.ndarray:
    """Sums (G, 2) of a metric's values and weights over each group of a table's items."""
    _, group = np.unique(table["group"], return_inverse=True)
    columns = (table[name].to_numpy(float) for name in (metric.name, f"{metric.name}_weight"))
    return np.stack([np.bincount(group, column) for column in columns], axis=1)


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
