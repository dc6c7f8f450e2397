"""GPU-hours and sessions of a full run, from the speed of a rehearsal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from nbutils.core.files import read_json, read_jsonl
from nbutils.core.run.layout import Run
from nbutils.core.run.state import State
from nbutils.core.stages import maker
from nbutils.core.training_log import LOG

WEEKLY_HOURS = 30.0
"""GPU-hours that Kaggle gives a week; an hour on two T4s counts as one (kaggle.com/docs/efficient-gpu-usage)."""
SESSION_HOURS = 11.5
"""Of a session's 12 hours, those that the time budget leaves."""
START_HOURS = 0.1
"""Of each session: installing, copying what came before, loading."""
WARM_UP = 3
"""First rows of a session that say little about its speed."""


def forecast(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], epochs: float, notebook_seconds: float = 0.0
) -> str:
    """What all passes over all of the data take, for people; '' where there are too few rows to tell.

    `rows` are those of `metrics.jsonl`, `summary` is `data/summary.json`. Datasets that were read in part are counted
    in full: their tokens are scaled by rows in the source over rows read. How often and how much the full run evaluates
    is not known to a rehearsal, so that the evaluations and notebook 04 are named and not counted.
    """
    speeds = [row["tokens_per_second"] for row in rows if row.get("kind") == "train"]
    speeds = speeds[WARM_UP:] or speeds[-1:]
    read = sum(source["rows"] for source in summary["datasets"])
    if not speeds or not read:
        return ""
    speed = median(speeds)
    scale = sum(source.get("rows_in_source") or source["rows"] for source in summary["datasets"]) / read
    tokens = summary["train"]["tokens"] * scale * epochs
    hours = tokens / speed / 3600
    sessions = max(1, math.ceil(hours / (SESSION_HOURS - START_HOURS)))
    hours += sessions * START_HOURS
    seconds = max((float(row.get("seconds") or 0.0) for row in rows if row.get("kind") == "eval"), default=0.0)
    evaluation = f" (here {seconds:.0f} s each)" if seconds else ""
    notebook = f" (here {notebook_seconds:.0f} s)" if notebook_seconds else ""
    return (
        f"At {speed:,.0f} tokens a second, the training steps of the full run ({tokens / 1e6:,.1f} million tokens) "
        f"take about {hours:.1f} GPU-hours in {sessions} session(s); Kaggle gives {WEEKLY_HOURS:.0f} hours a week, so "
        f"{math.ceil(hours / WEEKLY_HOURS)} week(s). Evaluations on the way{evaluation} and notebook 04{notebook} come "
        "on top."
    )


def forecast_of(run: Path) -> str:
    """The forecast from a run folder; '' where its training has not got so far."""
    folder = Run(run)
    paths = [folder.training / LOG, folder.rows / "summary.json", folder.training / "settings.json"]
    if not all(path.is_file() for path in paths):
        return ""
    rows, summary, settings = read_jsonl(paths[0]), read_json(paths[1]), read_json(paths[2])
    evaluated = folder.record(maker("scores").name) or {}
    seconds = evaluated["seconds"] if evaluated.get("status") == State.DONE else 0.0
    return forecast(rows, summary, settings["settings"]["epochs"], seconds)
