"""What training counts and logs, and when it evaluates, saves and stops: the same decisions on every rank."""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

from nbutils.core.files import Json, append_jsonl, read_json, read_jsonl, write_json, write_jsonl, write_text
from nbutils.core.run import pause
from nbutils.core.torchrun import PROGRESS, STARTED, tell
from nbutils.core.training_log import LOG, SECONDS
from nbutils.train.batches import StepBatch

if TYPE_CHECKING:
    from nbutils.train.trainer import SmallchatTrainer

COUNTERS, KEPT = "counters.json", ("window", "totals", "wall", "seconds")
"""The file of the counters in a checkpoint, and what it holds of them."""
FILES = {"metric": LOG, "sample": "samples.jsonl"}
"""The file for each kind of row."""

FIRST_STEPS = 3
"""Steps logged one by one at the start, to be compared with the plain loop of notebook 02."""


def pause_requests(run: Path) -> Callable[[], bool]:
    """Tells whether a pause was asked for: by SIGTERM, SIGINT, SIGHUP, or the request file in the run folder.

    The signals are taken from now on and only noted: the step under way is finished first. One that is ignored, as
    SIGHUP under `nohup`, stays so.
    """
    taken: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: taken.append(number))
    return lambda: bool(taken) or pause.requested(run)


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


class Records:
    """What a run writes about itself while it trains. Only those of rank 0 are `active`, the others write nothing."""

    def __init__(self, folder: Path, active: bool) -> None:
        self.folder, self.active, self.session = folder, active, 1

    def add(self, event: str, row: Json) -> None:
        """Appends a row, `metric` or `sample`, to its file, and shows it to whoever follows the progress."""
        if self.active:
            append_jsonl(self.folder / FILES[event], row)
            append_jsonl(self.folder / PROGRESS, {"event": event} | row)

    def progress(self, event: str, **facts: Any) -> None:
        """Appends an event for whoever follows the progress; it is no result."""
        if self.active:
            tell(self.folder, event, **facts)

    def rewind(self, step: int) -> None:
        """Begins a session: drops half-written rows and those beyond a step, which it makes again; at step 0 all."""
        if not self.active:
            return
        for name in FILES.values():
            path = self.folder / name
            rows = read_jsonl(path) if step and path.is_file() else []
            self.session = max([self.session, *(row["session"] + 1 for row in rows if row.get("kind") == "session")])
            write_jsonl(path, (row for row in rows if row["step"] <= step))
        write_text(self.folder / PROGRESS, "")


@dataclass
class Best:
    """The evaluation with the lowest loss whose weights are kept, and how many came since without a lower one."""

    step: int = 0
    eval_loss: float = math.inf
    waited: int = 0


class Counters:
    """Sums and seconds since the last log row, and totals.

    They are part of a checkpoint, so that a resumed run logs the same rows.
    """

    peak = math.inf
    """What the devices of all ranks could do, by `matrix_speed`."""

    def __init__(self) -> None:
        self.totals = {"supervised_tokens": 0, "total_tokens": 0, "elapsed": 0.0}
        self.begin_row()
        self.start_clock()

    def begin_row(self) -> None:
        """Begins a row with nothing counted."""
        self.window = dict.fromkeys(("loss", "correct", "supervised", "tokens", "padded", "flops"), 0.0)
        self.seconds, self.wall = dict.fromkeys(SECONDS, 0.0), 0.0

    def start_clock(self) -> None:
        """Measures the step under way from now on."""
        self._ended = time.perf_counter()

    def count_step(self, batch: StepBatch, loss: float, correct: float, flops: float) -> None:
        """Adds one optimizer step, its sums taken over all ranks."""
        added = {
            "loss": loss,
            "correct": correct,
            "supervised": batch.supervised_tokens,
            "tokens": batch.tokens,
            "padded": batch.padded_tokens,
            "flops": flops,
        }
        for name, value in added.items():
            self.window[name] += value
        self.totals["supervised_tokens"] += batch.supervised_tokens
        self.totals["total_tokens"] += batch.tokens

    def add(self, part: str, seconds: float) -> None:
        """Adds seconds to one part."""
        self.seconds[part] += seconds

    def end_step(self) -> float:
        """Seconds since the last step, evaluation or checkpoint ended; one of them ends now."""
        began, self._ended = self._ended, time.perf_counter()
        self.wall += self._ended - began
        return self._ended - began

    def row(self, **facts: float) -> Json:
        """The log row since the last one, with further facts; a new one begins."""
        self.end_step()
        window, parts, wall = self.window, self.seconds, max(self.wall, 1e-9)
        self.begin_row()
        self.totals["elapsed"] += wall
        parts["optimizer"] = max(0.0, wall - sum(parts.values()))
        working = max(wall - parts["evaluation"] - parts["checkpoint"], 1e-9)
        counted = max(window["supervised"], 1)
        return {
            "loss": window["loss"] / counted,
            "token_accuracy": window["correct"] / counted,
            **facts,
            "supervised_tokens": self.totals["supervised_tokens"],
            "total_tokens": self.totals["total_tokens"],
            "tokens_per_second": round(window["tokens"] / working, 1),
            "mfu": round(window["flops"] / working / self.peak, 4),
            "padding": round(1 - window["tokens"] / max(window["padded"], 1), 4),
            "peak_memory_gib": peak_memory_gib(),
            "seconds": {name: round(value, 3) for name, value in parts.items()},
            "elapsed": round(self.totals["elapsed"], 3),
        }

    def save(self, folder: Path, **others: Any) -> None:
        """Writes the counters into a checkpoint, as they were before it was begun, with other facts."""
        write_json(folder / COUNTERS, {name: getattr(self, name) for name in KEPT} | others)

    def load(self, folder: Path) -> Json:
        """Takes over the counters of a checkpoint, and returns all that `save` wrote there."""
        state = read_json(folder / COUNTERS)
        vars(self).update({name: state[name] for name in KEPT})
        return state


class CountingScaler(torch.amp.GradScaler):
    """The fp16 loss scaler; it counts the optimizer steps that it skips.

    A step is skipped where a gradient overflowed; the scale then falls, which is how it shows from outside.
    """

    skipped_steps = 0

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """As in torch; a fused optimizer is left out, too, instead of skipping inside its kernel.

        accelerate would not see that, and the schedule would go on.
        """
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return super().step(optimizer, *args, **kwargs)

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """As in torch; counts a skipped step."""
        before = self.get_scale()
        super().update(new_scale)
        self.skipped_steps += int(self.get_scale() < before)

    def state_dict(self) -> dict[str, float]:
        """The scaler's state with the count of skipped steps."""
        return super().state_dict() | {"skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Restores what `state_dict` returned."""
        self.skipped_steps = int(state_dict["skipped_steps"])
        super().load_state_dict(state_dict)


class StepControl(TrainerCallback):
    """Sets the trainer's flags after each optimizer step."""

    def __init__(self, trainer: SmallchatTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measures the untrained model first."""
        if state.global_step == 0:
            self.trainer.evaluate()
            self.trainer.job.counters.begin_row()
        self.trainer.job.counters.start_clock()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Logs, evaluates and saves every so many steps; on a pause saves and stops."""
        job, step = self.trainer.job, state.global_step
        settings = job.settings
        job.budget.note("step", job.counters.end_step())
        last = step >= state.max_steps
        enough = 0 < settings.pause_after_steps <= step - job.loader.first_step
        pausing = (self.trainer.stopping or enough) and not last
        control.should_log = step % settings.log_steps == 0 or step <= FIRST_STEPS or last
        control.should_evaluate = settings.eval_steps > 0 and step % settings.eval_steps == 0 and not last
        every, branch = settings.checkpoint_steps, settings.cooldown_from(state.max_steps)
        due = step == branch or (every > 0 and step % every == 0)
        control.should_save = pausing or (due and not last)
        control.should_training_stop = pausing or last


def peak_memory_gib() -> float:
    """Peak memory of this process so far, on its GPU if it uses one, in GiB."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)


def matrix_speed(device: torch.device) -> float:
    """Floating-point operations a second of a matrix product in the precision of autocast, the best of a few.

    It takes some milliseconds, and no random numbers.
    """
    half = torch.is_autocast_enabled(device.type)
    size = 4096 if device.type == "cuda" else 512
    matrix = torch.linspace(-1, 1, size * size, device=device).view(size, size)
    matrix = matrix.to(torch.get_autocast_dtype(device.type) if half else torch.float32)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # which waits for it
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


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
