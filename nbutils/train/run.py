"""Notebook 02's one call: train in child processes to the end or to a pause, show how it goes, and say how it went."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm.auto import tqdm

from nbutils.core.charts import LiveFigure
from nbutils.core.errors import UserError
from nbutils.core.files import read_json, read_jsonl, write_json
from nbutils.core.hardware import choose_processes, usable_gpus, visible_gpus
from nbutils.core.jupyter import interactive
from nbutils.core.run import pause
from nbutils.core.text import duration
from nbutils.core.torchrun import STARTED, Event, Hang, Torchrun, tell
from nbutils.core.training_log import LOG
from nbutils.train.preflight import too_few_gpus
from nbutils.train.settings import TrainSettings

LEAST_STEPS = 3
"""Steps of a run before its time left is forecast: the first is a warm-up, and one more says little."""

UNREACHED = (
    "The training processes could not reach each other{}; set processes to 1, or check that the loopback interface is "
    "up and no firewall closes it."
)


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

    Running it again resumes from the newest valid checkpoint by itself.
    """
    pause.clear(settings.run_path)
    figure, outlook = LiveFigure(), Outlook(settings.budget_minutes)
    rows: list[Event] = []
    last: Event = {}
    steps = 0
    with closing(events_of(settings, folder)) as events, tqdm(disable=not interactive(), unit="step") as bar:
        for event in events:
            if event["event"] in ("finished", "paused"):
                last = event
            if event["event"] == "started":  # what earlier sessions logged is part of the curve
                steps = figure.steps = event["steps"]
                rows = read_jsonl(folder / LOG)
                bar.reset(steps)
                bar.initial = event["step"]
            for line in (line_of(event, steps) + outlook.after(event, steps), outlook.sentence()):
                if line:
                    print(line, flush=True)
            if event["event"] == "metric":
                rows.append(event)
                bar.update(event["step"] - bar.n)
                figure.update(rows)
    figure.update(rows, now=True)
    return Outcome("done" if last["event"] == "finished" else "paused", last["step"], last["steps"])


def write_settings(settings: TrainSettings, folder: Path) -> Path:
    """Writes what the worker reads; what an earlier session derived stays in the file until it is derived again."""
    path = folder / "settings.json"
    record = read_json(path) if path.is_file() else {"schema": 1}
    write_json(path, record | {"settings": settings.model_dump(mode="json")})
    return path


def events_of(settings: TrainSettings, folder: Path) -> Generator[Event, None, None]:
    """Trains, and yields each event as it happens; the last is `finished` or `paused`.

    UserError as by `Torchrun.events`. Ctrl-C, Jupyter's interrupt and a pause request of the pipeline end in a
    checkpoint and a last event `paused`; a second interrupt raises KeyboardInterrupt and ends the processes at once.
    """
    gpus = visible_gpus()
    cores = os.cpu_count() or 1
    processes = choose_processes(settings.processes, gpus, cores)
    usable = usable_gpus(gpus)
    if problem := too_few_gpus(processes, usable):
        raise UserError(problem)
    environment = {
        "OMP_NUM_THREADS": str(max(1, cores // processes)),  # or their threads get in each other's way
        "TOKENIZERS_PARALLELISM": "false",
        STARTED: os.environ.get(STARTED) or str(time.time()),
        **({} if usable else {"CUDA_VISIBLE_DEVICES": ""}),
    }
    request = write_settings(settings, folder)
    for changes in ({}, {"NCCL_P2P_DISABLE": "1"}):
        program = Torchrun("nbutils.train.worker", request, processes, work="Training",
                           knob="tokens_per_microbatch", **environment, **changes)  # fmt: skip
        try:
            with _interrupts(settings.run_path, program):
                yield from program.events()
        except Hang:
            if not usable:  # peer-to-peer is NCCL's; without it there is nothing to try again
                raise UserError(UNREACHED.format("")) from None
            if not changes:
                print("The processes could not reach each other in time; trying once more without peer-to-peer.")
        else:
            return
    raise UserError(UNREACHED.format(", also with NCCL_P2P_DISABLE=1"))


@contextmanager
def _interrupts(run: Path, program: Torchrun) -> Iterator[None]:
    """Takes SIGINT while the block runs, also while whoever iterates over the events prints or draws.

    The first asks for a pause, the next one ends the processes at once.
    """
    asked = False

    def take(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked or pause.requested(run):
            program.kill()
            raise KeyboardInterrupt
        asked = True
        pause.request(run)
        tell(program.folder, "pausing")  # printed by whoever follows: the signal may have interrupted a print

    if threading.current_thread() is not threading.main_thread():
        yield  # another thread is sent no signals
        return
    before = signal.signal(signal.SIGINT, take)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Outlook:
    """The time that a running session still needs, from its rows of metrics."""

    def __init__(self, budget_minutes: float, clock: Callable[[], float] = time.time) -> None:
        self.budget_minutes, self.clock = budget_minutes, clock
        self.began = float(os.environ.get(STARTED) or clock())
        self.seconds: float | None = None
        self._first: Event | None = None
        self._said = False

    def after(self, event: Event, steps: int) -> str:
        """What the line about a training step says of the time left; empty for other events and until it is known."""
        if event.get("kind") != "train":
            return ""
        self._first = self._first or event
        taken = event["step"] - self._first["step"]
        if event["step"] < LEAST_STEPS or not taken:
            return ""
        pace = (event["elapsed"] - self._first["elapsed"]) / taken
        self.seconds = (steps - event["step"]) * pace
        return f"  about {duration(self.seconds)} left" if self.seconds else ""

    def sentence(self) -> str:
        """The forecast with the sessions that the run takes, once, as soon as there is one."""
        if self._said or not self.seconds:
            return ""
        self._said = True
        text = f"Forecast: about {duration(self.seconds)} left"
        if not self.budget_minutes:
            return f"{text}."
        used = self.clock() - self.began
        sessions = math.ceil((used + self.seconds) / (60 * self.budget_minutes))
        length = f"{self.budget_minutes:g} minute{'s' if self.budget_minutes != 1 else ''}"
        if sessions == 1:
            return f"{text}; it ends in this session of {length}."
        return f"{text}: {sessions} sessions of {length}, this one included."


def line_of(event: Event, steps: int) -> str:
    """One line for people about an event, empty for those that need none."""
    match event.get("kind", event["event"]):
        case "started":
            world, step = event["world_size"], event["step"]
            where = f"resumes at step {step} of {steps}" if step else f"starts, {steps} steps"
            return (
                f"Training {where}: {world} process{'es' if world > 1 else ''}, {event['device']}, "
                f"{event['precision']}, about {event['microbatches_per_step']} micro-batches a step"
            )
        case "train":
            return (
                f"step {event['step']:>6}/{steps}  loss {event['loss']:.3f}  accuracy {event['token_accuracy']:.1%}  "
                f"lr {event['learning_rate']:.2e}  grad norm {event['grad_norm']:.2f}  "
                f"{event['tokens_per_second']:,.0f} tok/s"
            )
        case "eval":
            return (
                f"step {event['step']:>6}/{steps}  evaluation loss {event['eval_loss']:.3f}  "
                f"accuracy {event['eval_token_accuracy']:.1%}  (the assistant's tokens)"
            )
        case "warning":
            return f"Note: {event['message']}"
        case "pausing":
            return "Pausing: a checkpoint is being written. Interrupt again to stop at once."
        case "paused":
            return f"Paused at step {event['step']} of {event['steps']} ({event['step'] / event['steps']:.0%})."
    return ""
