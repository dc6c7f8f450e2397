"""`metrics/summary.json`: what a run came to, in numbers that the model card and later readers take from there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, read_jsonl, shown
from nbutils.core.history import History, Series, trend
from nbutils.core.run.layout import Run
from nbutils.core.stages import maker
from nbutils.core.training_log import LOSS, METRICS
from nbutils.metrics.remarks import remarks

SCHEMA = 1
T = TypeVar("T")


def read_training_settings(run: Path) -> dict[str, Any]:
    """`train/settings.json` of a run folder; UserError where it is missing or damaged."""
    return _read(Run(run).training / "settings.json", lambda path: dict(read_json(path)))


def read_history(run: Path) -> History:
    """The training history of a run folder, and the step that it has reached.

    UserError where it is missing or damaged, or has no row of training or evaluation.
    """
    path = Run(run).training / "metrics.jsonl"
    history = _read(path, lambda path: History.of(read_jsonl(path)))
    if not history.train and not history.evals:
        raise UserError(
            f"{shown(path)} has no row of training or evaluation yet: let notebooks/02_train_sft.ipynb run on."
        )
    record = Run(run).record(maker("history").name) or {}
    return replace(history, reached=int(record.get("facts", {}).get("step") or 0))


def _read(path: Path, read: Callable[[Path], T]) -> T:
    if not path.is_file():
        raise UserError(f"{shown(path)} does not exist: run notebooks/02_train_sft.ipynb first.")
    try:
        return read(path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # no JSON, or rows of another kind
        raise UserError(
            f"{shown(path)} is damaged ({error}): take that line out, or run notebooks/02_train_sft.ipynb again."
        ) from None


def summarise(history: History, training: dict[str, Any]) -> dict[str, Any]:
    """Final and best values, perplexity, tokens, time, sessions and remarks; numbers that are missing are None.

    Losses are nats per supervised token; with `counts_all_tokens` the training loss is over all tokens, the evaluation
    loss always over the assistant's. The final training values are the ends of the smoothed curves; a run whose last
    value is no number has no final one. Perplexity is exp(final evaluation loss), per token.
    """
    derived = training.get("derived", {})
    eval_loss = history.eval_series(LOSS.evaluation)
    trained, final_eval = history.series(LOSS.column).ends_finite, _final(eval_loss)
    evaluated = {metric: history.eval_series(metric.evaluation) for metric in METRICS if metric.evaluation}
    final = {metric.column: trend(history.series(metric.column)).last if trained else None for metric in evaluated}
    final |= {m.evaluation: _final(s) if final_eval is not None else None for m, s in evaluated.items()}
    final |= {name: _final(history.eval_series(name)) for m in evaluated if (name := m.evaluation_alike)}
    perplexity = math.exp(final_eval) if final_eval is not None and final_eval < 700 else None
    return {
        "schema": SCHEMA,
        "steps": history.last_step,
        "planned_steps": derived.get("steps"),
        "epochs": history.series("epoch").last,
        "counts_all_tokens": history.counts_all_tokens,
        "untrained": {metric.evaluation: _at_start(series) for metric, series in evaluated.items()},
        "final": final | {"perplexity": perplexity},
        "evaluated_step": int(eval_loss.finite.steps[-1]) if final_eval is not None else None,
        "best": {
            metric.evaluation: _best(s, max if metric.higher_is_better else min) for metric, s in evaluated.items()
        },
        **_amounts(history),
        "seconds": {part: round(seconds, 3) for part, seconds in history.seconds.items()},
        "eval_hash": training.get("data", {}).get("eval_hash"),
        "remarks": remarks(history, derived.get("steps")),
    }


def _amounts(history: History) -> dict[str, Any]:
    """Tokens, time, the metrics that have one value for the run, sessions and skipped steps."""
    elapsed = history.elapsed
    return {
        "supervised_tokens": _whole(history.series("supervised_tokens").last),
        "total_tokens": _whole(history.series("total_tokens").last),
        "hours": elapsed / 3600 if elapsed is not None else None,
        **{m.column: OVER_RUN[m.over_run](history, m.column) for m in METRICS if m.over_run},
        "sessions": len(history.sessions),
        "resumes": history.resumes,
        "skipped_steps": _whole(history.series("skipped_steps").last) or 0,
    }


def _median(history: History, column: str) -> float | None:
    values = sorted(history.series(column).finite.values)
    return float(values[len(values) // 2]) if values else None


def _highest(history: History, column: str) -> float | None:
    values = history.series(column).finite.values
    return float(values.max()) if len(values) else None


def _mean_over_positions(history: History, column: str) -> float | None:
    """A share over all token positions of the run: each row counts by its positions."""
    share, tokens = history.series(column), history.series("total_tokens")
    known = np.isin(tokens.steps, share.finite.steps) & np.isfinite(tokens.values)
    if not known.any():
        return None
    own = np.diff(np.r_[0.0, tokens.values])[known]  # tokens of each row
    positions = own / (1 - share.values[np.isin(share.steps, tokens.steps[known])])
    return float(1 - own.sum() / positions.sum()) if positions.sum() > 0 else None


OVER_RUN: dict[str, Callable[[History, str], float | None]] = {
    "median": _median, "highest": _highest, "mean": _mean_over_positions,
}  # fmt: skip
"""How a metric's one value for the whole run is found."""


def _final(series: Series) -> float | None:
    """The value that the run ended with; None where that is no finite number."""
    return series.last if series.ends_finite else None


def _at_start(series: Series) -> float | None:
    finite = series.finite
    return float(finite.values[0]) if len(finite) and finite.steps[0] == 0 else None


def _best(series: Series, choose: Any) -> dict[str, float | int] | None:
    finite = series.finite
    if not len(finite):
        return None
    value = choose(finite.values.tolist())
    return {"value": value, "step": int(finite.steps[finite.values.tolist().index(value)])}


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
