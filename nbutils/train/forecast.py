"""How long a training run will still take, and in how many sessions of its budget: from the steps that it has taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbutils.core.verdict import duration
from nbutils.train.meters import margin_seconds

LEAST_STEPS = 3
"""Steps of a session before anything is said: the first is a warm-up, and one more says little."""


@dataclass(frozen=True)
class Course:
    """What a session knows of its run before the first step."""

    first_step: int
    steps: int
    eval_steps: int
    checkpoint_steps: int
    budget: float = 0.0
    """Seconds a session may take; 0 for no limit."""
    startup: float = 0.0
    """Seconds of a session before its first step."""
    logged: int | None = None
    """The last step with a row of metrics, where an earlier session began the first row of this one."""


@dataclass(frozen=True)
class Forecast:
    """Seconds that the run still takes, and how many sessions of the budget, this one included (None: no budget).

    `sessions` is 0 where a session is too short for a single step.
    """

    seconds: float
    sessions: int | None = None

    @property
    def words(self) -> str:
        """The forecast as a sentence's end."""
        return f"about {duration(self.seconds)} left"


@dataclass(frozen=True)
class _Pace:
    """Seconds of an optimizer step, of an evaluation with its sample replies, of a checkpoint."""

    step: float
    evaluation: float
    checkpoint: float


def forecast(course: Course, rows: Sequence[Mapping[str, Any]], used: float) -> Forecast | None:
    """The forecast after the `metrics.jsonl` rows of this session; None before its third step.

    `used` are the seconds that the session has taken so far, its start included. Evaluations and checkpoints to come
    are counted at what they cost so far; each further session costs its start-up and the margin that the budget keeps
    free (see `meters.margin_seconds`).
    """
    train = [row for row in rows if row["kind"] == "train"]
    if not train or train[-1]["step"] - course.first_step < LEAST_STEPS:
        return None
    pace = _pace(course, train, [row for row in rows if row["kind"] == "eval"])
    step = int(train[-1]["step"])
    evaluations = _multiples(course.eval_steps, step, course.steps) + 1  # the final one too
    checkpoints = _multiples(course.checkpoint_steps, step, course.steps)
    left = (course.steps - step) * pace.step + evaluations * pace.evaluation + checkpoints * pace.checkpoint
    if not course.budget:
        return Forecast(left)
    margin = margin_seconds(max(pace.evaluation, pace.checkpoint), pace.step)
    beyond = left - max(0.0, course.budget - used - margin)
    if left + used <= course.budget - margin or beyond <= 0:
        return Forecast(left, 1)
    session = course.budget - course.startup - margin
    return Forecast(left, 0 if session < pace.step else 1 + math.ceil(beyond / session))


def sentence(course: Course, found: Forecast) -> str:
    """The forecast for people, said once at the start of a session."""
    text = f"Forecast: {found.words}"
    length = course.budget / 60
    minutes = f"{length:g} minute{'s' if length != 1 else ''}"
    if found.sessions is None:
        return f"{text}."
    if found.sessions == 0:
        return (
            f"{text}, but a session of {minutes} ends before its first step: raise budget_minutes to more than "
            f"{math.ceil((course.startup + margin_seconds(0.0, 0.0)) / 60) + 1}."
        )
    if found.sessions == 1:
        return f"{text}; it ends in this session of {minutes}."
    return f"{text}: {found.sessions} sessions of {minutes}, this one included."


def _pace(course: Course, train: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]) -> _Pace:
    start = course.first_step if course.logged is None else course.logged
    windows = list(zip([start, *(int(row["step"]) for row in train)], train, strict=False))
    warm = windows[1:] or windows  # the first step is slower than the others
    seconds = sum(sum(row["seconds"].values()) - _paused(row) for _, row in warm)
    count = sum(int(row["step"]) - before for before, row in warm)
    return _Pace(
        step=seconds / max(1, count),
        evaluation=_cost("evaluation", course.eval_steps, windows)
        or max((float(row["seconds"]) for row in evals), default=0.0),
        checkpoint=_cost("checkpoint", course.checkpoint_steps, windows),
    )


def _cost(part: str, every: int, windows: Sequence[tuple[int, Mapping[str, Any]]]) -> float:
    """Mean seconds of an evaluation or a checkpoint; 0 where none has happened. It stands in the row that follows."""
    happened = [(_multiples(every, before - 1, int(row["step"])), row["seconds"][part]) for before, row in windows]
    count = sum(times for times, _ in happened)
    return float(sum(seconds for times, seconds in happened if times)) / count if count else 0.0


def _paused(row: Mapping[str, Any]) -> float:
    return float(row["seconds"]["evaluation"] + row["seconds"]["checkpoint"])


def _multiples(every: int, after: int, before: int) -> int:
    """Multiples of `every` strictly between two steps, 0 left out."""
    return max(0, (before - 1) // every - max(0, after) // every) if every > 0 else 0
