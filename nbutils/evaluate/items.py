"""Per-item results of a task as a table: what any later comparison is computed from, without a model.

And which items share a run of words with a conversation of the data stage's input, so that they are scored apart.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nbutils.core.tasks import item_label

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


def item_rows(samples: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metric], groups: str) -> list[dict[str, Any]]:
    """One row for each item that lm-eval logged, in the order of the task's documents.

    Columns: `doc_id`, `filter`, `group` (what is resampled as one: the document's column `groups`, or the item),
    `prompt_hash`, `loglikelihoods` and `is_greedy` of all requests, `choice` and `gold` where one is
    made, `response` of a generation, and for each metric `<metric>` and `<metric>_weight`.
    """
    rows = []
    for sample in sorted(samples, key=lambda s: (s["filter"], s["doc_id"])):
        doc, responses = sample["doc"], list(sample["filtered_resps"])
        pairs = [r for r in responses if isinstance(r, tuple | list) and len(r) == 2]
        scores = [float(r[0]) for r in pairs] or [float(r) for r in responses if isinstance(r, float)]
        gold = sample["target"] if isinstance(sample["target"], int) else None
        row = {
            "doc_id": int(sample["doc_id"]),
            "filter": sample["filter"],
            "group": int(doc[groups]) if groups else int(sample["doc_id"]),
            "prompt_hash": sample["prompt_hash"],
            "loglikelihoods": scores,
            "is_greedy": [bool(r[1]) for r in pairs],
            "choice": _choice(sample, scores) if gold is not None else None,
            "gold": gold,
            "response": "" if scores else str(responses[0]) if responses else "",
        }
        for name, metric in metrics.items():
            row[name], row[f"{name}_weight"] = _value_and_weight(sample.get(name), metric)
        rows.append(row)
    return rows


def _choice(sample: Mapping[str, Any], scores: Sequence[float]) -> int | None:
    """The likeliest choice; with acc_mutual_info the second half of the scores is the choices without context."""
    conditional = scores[: len(scores) // 2] if "acc_mutual_info" in sample else scores
    return int(np.argmax(conditional)) if len(conditional) > 1 and "acc" in sample else None


def _value_and_weight(value: Any, metric: Metric) -> tuple[float | None, float | None]:
    if value is None or metric.kind == "none":
        return None, None
    if isinstance(value, tuple | list):
        return float(value[0]), float(value[1])
    return float(value), 1.0


def to_parquet(rows: list[dict[str, Any]]) -> bytes:
    """Rows as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


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
