"""`metrics/summary.json`: what a run came to, in numbers that the model card and later readers take from there.

With several runs also what differs between them, in parameters and results.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nbutils.core.errors import UserError
from nbutils.core.files import Json, read_json, read_jsonl, resolve, shown
from nbutils.core.history import History, Series, trend
from nbutils.core.run.layout import Run
from nbutils.core.stages import maker
from nbutils.core.training_log import LOSS, METRICS, Metric
from nbutils.metrics.remarks import remarks

SCHEMA = 1
TOKENS = ("supervised_tokens", "total_tokens")
RESULTS = (
    *("steps", "total_tokens", "hours", "tokens_per_second"),
    *("final loss", "final eval_loss", "final eval_token_accuracy", "final perplexity", "best eval_loss"),
)
"""What compared runs are told apart by, beside their parameters."""


def read_training_settings(run: Path) -> Json:
    """`train/settings.json` of a run folder; UserError where it is missing or damaged."""
    return _read(Run(run).training / "settings.json", read_json)


def read_history(run: Path) -> History:
    """The training history of a run folder, and the step that it has reached.

    UserError where it is missing or damaged, or has no row of training or evaluation.
    """
    path = Run(run).training / "metrics.jsonl"
    history = _read(path, lambda path: History.of(map(_of_numbers, read_jsonl(path))))
    if not history.train and not history.evals:
        raise UserError(
            f"{shown(path)} has no row of training or evaluation yet: let notebooks/02_train_sft.ipynb run on."
        )
    record = Run(run).record(maker("history").name) or {}
    return replace(history, reached=int(record.get("facts", {}).get("step") or 0))


def _of_numbers(row: Json) -> Json:
    for name, value in (row | (row["seconds"] if isinstance(row.get("seconds"), dict) else {})).items():
        if row["kind"] != "session" and name not in ("kind", "seconds") and not isinstance(value, int | float | None):
            raise ValueError(f"the {name} of step {row['step']} is {value!r}, which is no number")
    return row


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    if not path.is_file():
        raise UserError(f"{shown(path)} does not exist: run notebooks/02_train_sft.ipynb first.")
    try:
        return read(path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # no JSON, or rows of another kind
        raise UserError(
            f"{shown(path)} is damaged ({error}): take that line out, or run notebooks/02_train_sft.ipynb again."
        ) from None


def summarise(history: History, training: Json) -> Json:
    """Final and best values, perplexity, tokens, time, sessions and remarks; numbers that are missing are None.

    Losses are nats per supervised token; with `counts_all_tokens` the training loss is over all tokens, the evaluation
    loss always over the assistant's. The final values are those of the final model, `chosen` at its step out of so many
    evaluations (0 where it is the last in any case), and None while it is not there; in training they are the ends of
    the smoothed curves; a run whose last value is no number has no final one. `last` is the last step's evaluation
    loss. Perplexity is exp(final evaluation loss), per token.
    """
    derived = training.get("derived", {})
    metrics = [metric for metric in METRICS if metric.evaluation]
    columns = [name for metric in metrics for name in (metric.evaluation, metric.evaluation_alike) if name]
    kept = history.until(history.chosen)
    evals, measured = ({name: _by_step(each.eval_series(name)) for name in columns} for each in (history, kept))
    loss = kept.eval_series(LOSS.evaluation)
    at = int(loss.steps[-1]) if loss.ended else None
    trained = kept.series(LOSS.column).ended
    final = {metric.column: trend(kept.series(metric.column)).last if trained else None for metric in metrics}
    final |= {name: values.get(at) for name, values in measured.items()}
    choices = history.choices if training.get("settings", {}).get("keep") == "best" else 0
    eval_loss, elapsed = final[LOSS.evaluation], history.elapsed
    perplexity = math.exp(eval_loss) if eval_loss is not None and eval_loss < 700 else None
    return {
        "schema": SCHEMA,
        "steps": history.last_step,
        "planned_steps": derived.get("steps"),
        "epochs": history.series("epoch").last,
        "counts_all_tokens": history.counts_all_tokens,
        "untrained": {metric.evaluation: evals[metric.evaluation].get(0) for metric in metrics},
        "final": final | {"perplexity": perplexity},
        "evaluated_step": at,
        "chosen": None if history.chosen is None else {"step": history.chosen, "evaluations": choices},
        "last": evals[LOSS.evaluation].get(history.last_step),
        "best": {metric.evaluation: _best(evals[metric.evaluation], metric) for metric in metrics},
        **{name: None if (last := history.series(name).last) is None else int(last) for name in TOKENS},
        "hours": None if elapsed is None else elapsed / 3600,
        **{metric.column: _over_run(history, metric) for metric in METRICS if metric.over_run},
        "sessions": len(history.sessions),
        "resumes": history.resumes,
        "skipped_steps": int(history.series("skipped_steps").last or 0),
        "seconds": {part: round(seconds, 3) for part, seconds in history.seconds.items()},
        "eval_hash": training.get("data", {}).get("eval_hash"),
        "remarks": remarks(history, derived.get("steps")),
    }


def _over_run(history: History, metric: Metric) -> float | None:
    """A metric's one value for the whole run; of a share, each row counts by its token positions."""
    series = history.series(metric.column)
    if metric.over_run != "mean":
        rank = {"median": 0.5, "highest": 1.0}[metric.over_run]
        return float(np.quantile(series.values, rank, method="higher")) if len(series) else None
    share, total = (pd.Series(s.values, s.steps) for s in (series, history.series("total_tokens")))
    tokens = total.diff().fillna(total[:1])  # of each row
    positions = (tokens / (1 - share)).dropna()
    return float(1 - tokens[positions.index].sum() / positions.sum()) if positions.sum() > 0 else None


def _by_step(series: Series) -> pd.Series[float]:
    return pd.Series(series.values, series.steps.astype(int))


def _best(values: pd.Series[float], metric: Metric) -> dict[str, float | int] | None:
    if values.empty:
        return None
    step = values.idxmax() if metric.higher_is_better else values.idxmin()
    return {"value": float(values[step]), "step": int(step)}


@dataclass(frozen=True)
class Compared:
    """One run of a comparison: its name here, folder, history, evaluation set, and its parameters and results."""

    name: str
    folder: Path
    history: History
    eval_hash: str
    values: Json


def read_runs(folders: Sequence[str | Path]) -> list[Compared]:
    """The runs in a list of run folders, each named by its path below the folder that holds all.

    UserError where one is named twice, or where they were not measured on the same evaluation set.
    """
    paths = [resolve(folder).resolve() for folder in folders]
    runs: list[Compared] = []
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"The run {path.name} is in the comparison twice: name it once, as run_dir or in "
                            "compare_runs.")  # fmt: skip
        name = str(path.relative_to(os.path.commonpath([other.parent for other in paths])))
        history, training = read_history(path), read_training_settings(path)
        found = summarise(history, training)
        found |= {f"final {name}": value for name, value in found["final"].items()}
        found["best eval_loss"] = (found["best"]["eval_loss"] or {}).get("value")
        values = (Run(path).record(maker("rows").name) or {}).get("parameters", {})
        values |= training.get("settings", {}) | training.get("derived", {}) | {name: found[name] for name in RESULTS}
        runs.append(Compared(name, path, history, found["eval_hash"], values))
    for run in runs:
        if not run.eval_hash:
            raise UserError(
                f"The run '{run.name}' cannot be compared: its train/settings.json names no evaluation set "
                "(eval_hash); run its notebooks 01 and 02 again, or leave it out of compare_runs."
            )
        if run.eval_hash != runs[0].eval_hash:
            raise UserError(
                f"The runs '{runs[0].name}' and '{run.name}' cannot be compared: their evaluation sets differ (hashes "
                f"{runs[0].eval_hash[:12]} and {run.eval_hash[:12]}); give both the same datasets, split_seed, "
                "max_length and base model, or leave one out of compare_runs."
            )
    return runs


def differences(runs: list[Compared]) -> dict[str, Json]:
    """Each parameter of all runs that differs and each result, by run: name → {run: value}; empty without runs."""
    rows = {}
    for name, first in runs[0].values.items() if runs else ():
        row = {run.name: run.values[name] for run in runs if name in run.values}
        differs = name != "run_dir" and len(row) == len(runs) and any(value != first for value in row.values())
        if differs or name in RESULTS:
            rows[name] = row
    return rows
