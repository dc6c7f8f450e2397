"""GPU-hours and sessions of a full run, from the speed of a rehearsal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Forecast:
    """What all passes over all of the data take, at the speed that was seen.

    `evaluation_seconds`: of one evaluation during training; `notebook_seconds`: of notebook 04. How often and how much
    the full run evaluates is not known to a rehearsal, so that these are named and not counted.
    """

    tokens: float
    tokens_per_second: float
    evaluation_seconds: float = 0.0
    notebook_seconds: float = 0.0

    @property
    def hours(self) -> float:
        """Hours of training, without evaluations and starts."""
        return self.tokens / self.tokens_per_second / 3600

    @property
    def sessions(self) -> int:
        """How many sessions of Kaggle that takes."""
        return max(1, math.ceil(self.hours / (SESSION_HOURS - START_HOURS)))

    @property
    def gpu_hours(self) -> float:
        """What is taken from the weekly quota."""
        return self.hours + self.sessions * START_HOURS

    @property
    def sentence(self) -> str:
        """The forecast for people."""
        weeks = math.ceil(self.gpu_hours / WEEKLY_HOURS)
        return (
            f"At {self.tokens_per_second:,.0f} tokens a second, the training steps of the full run "
            f"({self.tokens / 1e6:,.1f} million tokens) take about {self.gpu_hours:.1f} GPU-hours in {self.sessions} "
            f"session(s); Kaggle gives {WEEKLY_HOURS:.0f} hours a week, so {weeks} week(s). {self._beside}"
        )

    @property
    def _beside(self) -> str:
        evaluation = f" (here {self.evaluation_seconds:.0f} s each)" if self.evaluation_seconds else ""
        notebook = f" (here {self.notebook_seconds:.0f} s)" if self.notebook_seconds else ""
        return f"Evaluations on the way{evaluation} and notebook 04{notebook} come on top."


def forecast(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], epochs: float, notebook_seconds: float = 0.0
) -> Forecast | None:
    """The full run's forecast from rows of `metrics.jsonl` and `data/summary.json`; None where there are too few rows.

    Datasets that were read in part are counted in full: their tokens are scaled by rows in the source over rows read.
    """
    speeds = [row["tokens_per_second"] for row in rows if row.get("kind") == "train"]
    speeds = speeds[WARM_UP:] or speeds[-1:]
    read = sum(source["rows"] for source in summary["datasets"])
    if not speeds or not read:
        return None
    scale = sum(source.get("rows_in_source") or source["rows"] for source in summary["datasets"]) / read
    evaluation = max((float(row.get("seconds") or 0.0) for row in rows if row.get("kind") == "eval"), default=0.0)
    tokens = summary["train"]["tokens"] * scale * epochs
    return Forecast(tokens, float(median(speeds)), evaluation, notebook_seconds)


def forecast_of(run: Path) -> Forecast | None:
    """The forecast from a run folder; None where its training has not got so far."""
    folder = Run(run)
    paths = [folder.training / LOG, folder.rows / "summary.json", folder.training / "settings.json"]
    if not all(path.is_file() for path in paths):
        return None
    rows, summary, settings = read_jsonl(paths[0]), read_json(paths[1]), read_json(paths[2])
    if "datasets" not in summary:
        return None
    evaluated = folder.record(maker("scores").name) or {}
    seconds = float(evaluated["seconds"]) if evaluated.get("status") == State.DONE else 0.0
    return forecast(rows, summary, float(settings["settings"]["epochs"]), seconds)
