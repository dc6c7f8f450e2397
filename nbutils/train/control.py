"""What the trainer counts, and when it logs, evaluates, saves and stops: the same decisions on every rank."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nbutils.core.files import read_json, write_json
from nbutils.core.run import pause
from nbutils.core.torchrun import STARTED
from nbutils.core.training_log import SECONDS
from nbutils.train.batches import StepBatch

if TYPE_CHECKING:
    from nbutils.train.trainer import SmallchatTrainer

COUNTERS = "counters.json"
FIRST_STEPS = 3
"""Steps logged one by one at the start, to be compared with the plain loop of notebook 02."""


class PauseRequests:
    """Whether somebody asked this process to pause: SIGTERM, SIGINT, SIGHUP, or the request file in the run folder."""

    def __init__(self, run: Path) -> None:
        """Takes the signals from now on; they only set a flag, the step under way is finished first.

        Under `nohup` SIGHUP stays ignored, as it asks for.
        """
        self.run = run
        self.signalled = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def __call__(self) -> bool:
        return self.signalled or pause.requested(self.run)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True


class Budget:
    """The time of a session: whether this rank asks for a pause, on request or with too little left for a step more.

    The margin remembers the slowest step and the slowest pause (an evaluation or a checkpoint) of all sessions.
    """

    def __init__(self, requested: Callable[[], bool], minutes: float = 0.0) -> None:
        self.requested = requested
        self.deadline = float(os.environ.get(STARTED) or time.time()) + 60 * minutes if minutes else float("inf")
        self.slowest = {"step": 0.0, "pause": 0.0}

    def note(self, what: str, seconds: float) -> None:
        """Notes how long a step or a pause took."""
        self.slowest[what] = max(self.slowest[what], seconds)

    def is_spent(self) -> bool:
        """Whether to pause: the margin is one more step, an evaluation and a checkpoint, with half to spare."""
        margin = 1.5 * (2 * self.slowest["pause"] + self.slowest["step"]) + 2.0
        return self.requested() or time.time() + margin > self.deadline


class Counters:
    """Sums since the last log row, totals, and seconds by part.

    They are part of a checkpoint, so that a resumed run logs the same rows.
    """

    def __init__(self) -> None:
        self.window = dict.fromkeys(("loss", "correct", "supervised", "tokens", "padded", "flops", "steps"), 0.0)
        self.seconds = dict.fromkeys(SECONDS, 0.0)
        self.totals = {"supervised_tokens": 0, "total_tokens": 0, "elapsed": 0.0}
        self._row_began = self._step_began = time.perf_counter()
        self._carried = (0.0, dict(self.seconds))  # wall clock and parts of a row that an earlier session began

    def count_step(self, batch: StepBatch, loss_sum: float, correct: float, flops: float) -> None:
        """Adds one optimizer step, its sums taken over all ranks."""
        added = (loss_sum, correct, batch.supervised_tokens, batch.tokens, batch.padded_tokens, flops, 1)
        for name, value in zip(self.window, added, strict=True):
            self.window[name] += value
        self.totals["supervised_tokens"] += batch.supervised_tokens
        self.totals["total_tokens"] += batch.tokens

    def add(self, part: str, seconds: float) -> None:
        """Adds seconds to one part."""
        self.seconds[part] += seconds

    def end_step(self) -> float:
        """Seconds since the last step, evaluation or checkpoint ended; one of them ends now."""
        began, self._step_began = self._step_began, time.perf_counter()
        return self._step_began - began

    def row(self, **facts: float) -> dict[str, Any]:
        """The log row since the last one, with further facts; a new one begins."""
        began, self._row_began = self._row_began, time.perf_counter()
        wall = max(self._row_began - began, 1e-9)
        window, counted = self.window, max(self.window["supervised"], 1)
        self.totals["elapsed"] += wall
        parts = dict(self.seconds)
        parts["optimizer"] = max(0.0, wall - sum(parts.values()))
        working = max(wall - parts["evaluation"] - parts["checkpoint"], 1e-9)
        self.window, self.seconds = dict.fromkeys(window, 0.0), dict.fromkeys(SECONDS, 0.0)
        return {
            "loss": window["loss"] / counted,
            "token_accuracy": window["correct"] / counted,
            **facts,
            "supervised_tokens": self.totals["supervised_tokens"],
            "total_tokens": self.totals["total_tokens"],
            "tokens_per_second": round(window["tokens"] / working, 1),
            "flops_per_second": round(window["flops"] / max(parts["forward_backward"], 1e-9)),
            "padding": round(1 - window["tokens"] / max(window["padded"], 1), 4),
            "peak_memory_gib": peak_memory_gib(),
            "seconds": {name: round(value, 3) for name, value in parts.items()},
            "elapsed": round(self.totals["elapsed"], 3),
        }

    def save(self, folder: Path, **others: Any) -> None:
        """Writes the counters into a checkpoint, as they were before it was begun, with other facts."""
        wall = max(0.0, self._step_began - self._row_began)
        state = {"window": self.window, "totals": self.totals, "wall": wall, "seconds": self.seconds}
        write_json(folder / COUNTERS, state | others)

    def load(self, folder: Path) -> dict[str, Any]:
        """Resumes from the counters of a checkpoint, which are returned; the row that it was made in goes on."""
        state: dict[str, Any] = read_json(folder / COUNTERS)
        self.window, self.totals = state["window"], state["totals"]
        self._carried = (state["wall"], state["seconds"])
        return state

    def restart_clock(self) -> None:
        """Starts the wall clock of the next log row now, with what an earlier session spent on the same row."""
        wall, seconds = self._carried
        self.seconds = dict(seconds)
        self._step_began = time.perf_counter()
        self._row_began = self._step_began - wall


class StepControl(TrainerCallback):
    """Sets the trainer's flags after each optimizer step."""

    def __init__(self, trainer: SmallchatTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures the untrained model first."""
        if state.global_step == 0:
            self.trainer.evaluate()
        self.trainer.job.counters.restart_clock()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Logs, evaluates and saves every so many steps; on a pause saves and stops."""
        job, step = self.trainer.job, state.global_step
        settings = job.settings
        job.budget.note("step", job.counters.end_step())
        last = step >= state.max_steps
        enough = 0 < settings.pause_after_steps <= step - job.loader.first_step
        pausing = (self.trainer.stopping or enough) and not last
        control.should_log = step % settings.log_steps == 0 or step <= FIRST_STEPS or last
        control.should_evaluate = settings.eval_steps > 0 and step % settings.eval_steps == 0 and not last
        every = settings.checkpoint_steps
        control.should_save = pausing or (every > 0 and step % every == 0 and not last)
        if pausing or last:
            control.should_training_stop = True
        return control


def peak_memory_gib() -> float:
    """Peak memory of this process so far, on its GPU if it uses one, in GiB."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)


def flops_of(model: PreTrainedModel, batch: StepBatch) -> float:
    """Floating-point operations of a step's forward and backward on all ranks: 2 + 4 for each weight used.

    The count is that of Chowdhery et al. 2022 (PaLM), with half of its attention, since ours is causal; only supervised
    tokens pass the output embedding.
    """
    config = model.config.get_text_config()
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    body = model.num_parameters() - embedding.numel() - (0 if head is embedding else head.numel())
    weights = body * batch.tokens + head.numel() * batch.supervised_tokens
    return 6.0 * (weights + config.num_hidden_layers * config.hidden_size * batch.attended)
