"""Counters of a training run: sums since the last log row, totals, seconds by part, and the time budget."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nbutils.core.files import read_json, write_json
from nbutils.train.loader import StepBatch

FILE = "counters.json"
PARTS = ("data", "forward_backward", "optimizer", "evaluation", "checkpoint")


class Meters:
    """Counts what happened; its state is part of a checkpoint, so that a resumed run logs the same rows."""

    def __init__(self, flops_per_token: Callable[[StepBatch], float], asks_to_stop: Callable[[], bool]) -> None:
        self.flops = flops_per_token
        self.asks_to_stop = asks_to_stop
        self.window = dict.fromkeys(("loss", "correct", "supervised", "tokens", "padded", "flops", "steps"), 0.0)
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.totals = {"supervised_tokens": 0, "total_tokens": 0, "elapsed": 0.0}
        self.stopping = False
        self.created = time.time()
        self.deadline = float("inf")
        self.slowest_pause = 0.0
        self.slowest_step = 0.0
        self.last_batch: StepBatch
        self._mark = self._step_mark = time.perf_counter()
        self._carried = (0.0, dict(self.seconds))  # wall clock and parts of a window that an earlier session began

    def count_step(self, batch: StepBatch, loss_sum: float, correct: float) -> None:
        """Adds one optimizer step, its sums taken over all ranks."""
        self.last_batch = batch
        added = {
            "loss": loss_sum,
            "correct": correct,
            "supervised": batch.supervised_tokens,
            "tokens": batch.tokens,
            "padded": batch.padded_tokens,
            "flops": self.flops(batch),
            "steps": 1,
        }
        for name, value in added.items():
            self.window[name] += value
        self.totals["supervised_tokens"] += batch.supervised_tokens
        self.totals["total_tokens"] += batch.tokens

    def end_step(self) -> None:
        """Notes how long the step took, for the time budget; to be called when its update is done."""
        now = time.perf_counter()
        self.slowest_step = max(self.slowest_step, now - self._step_mark)
        self._step_mark = now

    def add(self, part: str, seconds: float) -> None:
        """Adds seconds to one part."""
        self.seconds[part] += seconds

    def note_pause(self, seconds: float) -> None:
        """Notes how long a checkpoint or an evaluation took: the budget keeps a margin for the slowest."""
        self.slowest_pause = max(self.slowest_pause, seconds)
        self._step_mark = time.perf_counter()

    def wants_to_stop(self) -> bool:
        """Whether this rank asks for a pause: a signal, a request, or too little budget left for one more step."""
        margin = margin_seconds(self.slowest_pause, self.slowest_step)
        return self.asks_to_stop() or time.time() + margin > self.deadline

    def row(self, **facts: float) -> dict[str, Any]:
        """The log row since the last one, and an empty window."""
        now = time.perf_counter()
        wall = max(now - self._mark, 1e-9)
        self._mark = now
        window, counted = self.window, max(self.window["supervised"], 1)
        self.totals["elapsed"] += wall
        parts = dict(self.seconds)
        parts["optimizer"] = max(0.0, wall - sum(parts.values()))
        step, epoch = int(facts.pop("step")), facts.pop("epoch")
        row = {
            "step": step,
            "epoch": round(epoch, 4),
            "loss": window["loss"] / counted,
            "token_accuracy": window["correct"] / counted,
            **facts,
            "supervised_tokens": self.totals["supervised_tokens"],
            "total_tokens": self.totals["total_tokens"],
            "tokens_per_second": round(
                window["tokens"] / max(wall - parts["evaluation"] - parts["checkpoint"], 1e-9), 1
            ),
            "flops_per_second": round(window["flops"] / max(parts["forward_backward"], 1e-9)),
            "padding": round(1 - window["tokens"] / max(window["padded"], 1), 4),
            "peak_memory_gib": peak_memory_gib(),
            "seconds": {name: round(value, 3) for name, value in parts.items()},
            "elapsed": round(self.totals["elapsed"], 3),
        }
        self.window = dict.fromkeys(self.window, 0.0)
        self.seconds = dict.fromkeys(PARTS, 0.0)
        return row

    def save(self, folder: Path) -> None:
        """Writes the counters into a checkpoint, as they stood before it was begun."""
        state = {
            "window": self.window,
            "totals": self.totals,
            "wall": max(0.0, self._step_mark - self._mark),
            "seconds": self.seconds,
            "slowest_pause": self.slowest_pause,
            "slowest_step": self.slowest_step,
        }
        write_json(folder / FILE, state)

    def load(self, folder: Path) -> None:
        """Goes on from the counters of a checkpoint; the next log row is that of the window that it was made in."""
        state = read_json(folder / FILE)
        self.window, self.totals = state["window"], state["totals"]
        self._carried = (state.get("wall", 0.0), state.get("seconds", self.seconds))
        self.slowest_pause = state.get("slowest_pause", 0.0)
        self.slowest_step = state.get("slowest_step", 0.0)

    def restart_clock(self) -> None:
        """Starts the wall clock of the next log row now, with what an earlier session spent on the same row."""
        wall, seconds = self._carried
        self.seconds = dict(seconds)
        self._step_mark = time.perf_counter()
        self._mark = self._step_mark - wall


def margin_seconds(slowest_pause: float, slowest_step: float) -> float:
    """Seconds of the budget kept free for one more step, an evaluation and a checkpoint, with half to spare."""
    return 1.5 * (2 * slowest_pause + slowest_step) + 2.0


def peak_memory_gib() -> float:
    """Peak memory of this process so far, on its GPU if it uses one, in GiB."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)


def flops_of(parameters: int, head: int, layers: int, hidden: int) -> Callable[[StepBatch], float]:
    """Floating-point operations of a step's forward and backward on all ranks: 2 + 4 for each weight used.

    The count is that of Chowdhery et al. 2022 (PaLM), with half of its attention, since ours is causal. `parameters`
    without embeddings, `head` weights of the output embedding, which only supervised tokens pass.
    """

    def of(batch: StepBatch) -> float:
        weights = parameters * batch.tokens + head * batch.supervised_tokens
        return 6.0 * (weights + layers * hidden * batch.attended)

    return of
