"""`metrics/summary.json`: what a run came to, in numbers that the model card and later readers take from there."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, shown
from nbutils.core.history import History, Series, trend
from nbutils.core.record import stage_record
from nbutils.metrics.remarks import remarks

SCHEMA = 1


def read_training_settings(run: Path) -> dict[str, Any]:
    """`train/settings.json` of a run folder; UserError where it is missing or damaged."""
    path = run / "train" / "settings.json"
    if not path.is_file():
        raise UserError(f"{shown(path)} does not exist: run notebooks/02_train_sft.ipynb first.")
    try:
        settings: dict[str, Any] = dict(read_json(path))
    except (ValueError, TypeError) as error:
        raise UserError(f"{shown(path)} is damaged ({error}): run notebooks/02_train_sft.ipynb again.") from None
    return settings


def read_history(run: Path) -> History:
    """The training history of a run folder, and the step that it has reached; UserError where there is none."""
    record = stage_record(run, "train") or {}
    history = History.read(run / "train" / "metrics.jsonl")
    return replace(history, reached=int(record.get("facts", {}).get("step") or 0))


def summarise(history: History, training: dict[str, Any]) -> dict[str, Any]:
    """Final and best values, perplexity, tokens, time, sessions and remarks; numbers that are missing are None.

    Losses are nats per supervised token; with `counts_all_tokens` the training loss is over all tokens, the evaluation
    loss always over the assistant's. The final training values are the ends of the smoothed curves; a run whose last
    value is no number has no final one. Perplexity is exp(final evaluation loss), per token.
    """
    derived = training.get("derived", {})
    loss, accuracy = history.series("loss"), history.series("token_accuracy")
    eval_loss, eval_accuracy = history.eval_series("eval_loss"), history.eval_series("eval_token_accuracy")
    final_eval = _final(eval_loss)
    return {
        "schema": SCHEMA,
        "steps": history.last_step,
        "planned_steps": derived.get("steps"),
        "epochs": history.series("epoch").last,
        "counts_all_tokens": history.counts_all_tokens,
        "untrained": {"eval_loss": _at_start(eval_loss), "eval_token_accuracy": _at_start(eval_accuracy)},
        "final": {
            "loss": trend(loss).last if loss.ends_finite else None,
            "token_accuracy": trend(accuracy).last if loss.ends_finite else None,
            "eval_loss": final_eval,
            "eval_loss_all_tokens": _final(history.eval_series("eval_loss_all_tokens")),
            "eval_token_accuracy": _final(eval_accuracy) if eval_loss.ends_finite else None,
            "perplexity": math.exp(final_eval) if final_eval is not None and final_eval < 700 else None,
        },
        "evaluated_step": int(eval_loss.finite.steps[-1]) if final_eval is not None else None,
        "best": {
            "eval_loss": _best(eval_loss, min),
            "eval_token_accuracy": _best(eval_accuracy, max),
        },
        **_amounts(history),
        "seconds": {part: round(seconds, 3) for part, seconds in history.seconds().items()},
        "eval_hash": training.get("data", {}).get("eval_hash"),
        "remarks": remarks(history, derived.get("steps")),
    }


def _amounts(history: History) -> dict[str, Any]:
    """Tokens, time, memory, sessions and skipped steps; the speed is the median of the log rows."""
    speed = history.series("tokens_per_second").finite.values
    elapsed = history.elapsed
    memory = history.series("peak_memory_gib").finite.values
    return {
        "supervised_tokens": _whole(history.series("supervised_tokens").last),
        "total_tokens": _whole(history.series("total_tokens").last),
        "hours": elapsed / 3600 if elapsed is not None else None,
        "tokens_per_second": float(sorted(speed)[len(speed) // 2]) if len(speed) else None,
        "padding": _padding(history),
        "peak_memory_gib": float(memory.max()) if len(memory) else None,
        "sessions": len(history.sessions),
        "resumes": history.resumes,
        "skipped_steps": _whole(history.series("skipped_steps").last) or 0,
    }


def _padding(history: History) -> float | None:
    """The share of padding among all token positions of the run: each row counts by its positions."""
    share, tokens = history.series("padding"), history.series("total_tokens")
    known = np.isin(tokens.steps, share.finite.steps) & np.isfinite(tokens.values)
    if not known.any():
        return None
    own = np.diff(np.r_[0.0, tokens.values])[known]  # tokens of each row
    positions = own / (1 - share.values[np.isin(share.steps, tokens.steps[known])])
    return float(1 - own.sum() / positions.sum()) if positions.sum() > 0 else None


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
