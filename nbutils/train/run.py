"""Notebook 02's one call: train to the end or to a pause, and say how it went."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbutils.core import pause
from nbutils.core.figures import LiveFigure
from nbutils.core.files import read_jsonl
from nbutils.train.display import ProgressBar
from nbutils.train.forecast import Course, Forecast, forecast, sentence
from nbutils.train.launch import events_of
from nbutils.train.records import METRICS
from nbutils.train.settings import TrainSettings


@dataclass(frozen=True)
class Outcome:
    """How a training session ended: `done` or `paused`, and at which optimizer step of how many."""

    status: str
    step: int
    steps: int

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage's record says about it."""
        facts: dict[str, Any] = {"step": self.step, "steps": self.steps, "fraction": round(self.step / self.steps, 4)}
        facts["made"] = f"step {self.step:,} of {self.steps:,}"
        if self.status == "paused":
            facts["how_to_continue"] = "run the same command, or this notebook, again"
        return facts


def run_training(settings: TrainSettings, folder: Path) -> Outcome:
    """Trains in child processes; prints a line per log step and redraws the live loss curve in Jupyter.

    Running it again goes on from the newest valid checkpoint by itself.
    """
    pause.clear(settings.run_path)
    figure, bar, outlook = LiveFigure(), ProgressBar(), Outlook(settings)
    rows: list[dict[str, Any]] = []
    last: dict[str, Any] = {}
    steps = 0
    with closing(events_of(settings, folder)) as events:  # whatever happens in here, nothing trains on unseen
        for event in events:
            last = event
            steps = event.get("steps", steps)
            if event["event"] == "started":  # what earlier sessions logged is part of the curve
                figure.steps, rows = steps, read_jsonl(folder / METRICS)
            for line in (line_of(event, steps) + outlook.behind(event), outlook.first_words()):
                if line:
                    print(line, flush=True)
            if event["event"] == "metric":
                rows.append(event)
                bar.update(event["step"], steps, outlook.words)
                figure.update(rows)
    figure.update(rows, now=True)
    return Outcome("done" if last["event"] == "finished" else "paused", last["step"], last["steps"])


class Outlook:
    """The forecast of a running session, fed with its events."""

    def __init__(self, settings: TrainSettings, clock: Callable[[], float] = time.time) -> None:
        self.settings, self.clock, self.started = settings, clock, clock()
        self.rows: list[dict[str, Any]] = []
        self.course: Course | None = None
        self.found: Forecast | None = None
        self._said = False

    @property
    def words(self) -> str:
        """`about 3 minutes left`, or nothing yet."""
        return self.found.words if self.found else ""

    def behind(self, event: dict[str, Any]) -> str:
        """Takes an event in; what the line about it says of the time left, for the rows of training steps."""
        if event["event"] == "started":
            settings = self.settings
            self.rows = []
            self.course = Course(
                first_step=event["step"],
                steps=event["steps"],
                eval_steps=settings.eval_steps,
                checkpoint_steps=settings.checkpoint_steps,
                budget=60 * settings.budget_minutes,
                startup=self.clock() - self.started,
                logged=event.get("logged"),
            )
        elif event["event"] == "metric" and self.course:
            self.rows.append(event)
            self.found = forecast(self.course, self.rows, self.clock() - self.started)
        last = self.course is None or event.get("step") == self.course.steps
        return f"  {self.words}" if self.found and event.get("kind") == "train" and not last else ""

    def first_words(self) -> str:
        """The forecast with the sessions that the run will take, once, as soon as there is one."""
        if self._said or not self.found or not self.course or not self.rows or self.found.seconds <= 0:
            return ""
        self._said = True
        return sentence(self.course, self.found)


def line_of(event: dict[str, Any], steps: int) -> str:
    """One line for people about an event, empty for those that need none."""
    kind = event.get("kind", event["event"])
    if kind == "started":
        world, steps = event["world_size"], event["steps"]
        where = f"resumes at step {event['step']} of {steps}" if event["step"] else f"starts, {steps} steps"
        return (
            f"Training {where}: {world} process{'es' if world > 1 else ''}, {event['device']}, "
            f"{event['precision']}, about {event['microbatches_per_step']} micro-batches a step"
        )
    at = f"step {event.get('step', 0):>6}/{steps}"
    if kind == "train":
        return (
            f"{at}  loss {event['loss']:.3f}  accuracy {event['token_accuracy']:.1%}  lr {event['learning_rate']:.2e}  "
            f"grad norm {event['grad_norm']:.2f}  {event['tokens_per_second']:,.0f} tok/s"
        )
    if kind == "eval":
        numbers = f"evaluation loss {event['eval_loss']:.3f}  accuracy {event['eval_token_accuracy']:.1%}"
        return f"{at}  {numbers}  (the assistant's tokens)"
    if kind == "warning":
        return f"Note: {event['message']}"
    if kind == "paused":
        return f"Paused at step {event['step']} of {event['steps']} ({event['step'] / event['steps']:.0%})."
    return ""
