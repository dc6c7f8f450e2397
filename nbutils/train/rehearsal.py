"""How many optimizer steps fit into a time: a few are taken on a trainer that is thrown away."""

from __future__ import annotations

import gc
import shutil
import time
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase, TrainerCallback

from nbutils.core.errors import UserError
from nbutils.core.files import Json
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef
from nbutils.core.text import duration
from nbutils.train.arguments import Arguments
from nbutils.train.batches import StepLoader
from nbutils.train.control import Best, Budget, Counters, Records, peak_memory_gib
from nbutils.train.kernels import make_ready
from nbutils.train.settings import TrainSettings
from nbutils.train.trainer import Job, SmallchatTrainer

WARM_UP, PROBES = 4, 16
"""Steps before those that are measured, and how many these are."""
SHARE = 0.97
"""How much of the time is planned for: steps are not equally fast all the time."""
FEWEST = 20
"""Steps below which nothing is trained."""


@dataclass
class Probes(StepLoader):
    """Steps of the first epoch from the cheapest to the dearest, behind a few of medium cost and before one more."""

    @cached_property
    def chosen(self) -> list[np.ndarray]:
        """Row numbers of each step."""
        steps = self.plan.steps(0)
        cost = [int((self.plan.lengths[rows].astype(np.int64) ** 2).sum()) for rows in steps]
        order = np.argsort(cost, kind="stable")
        picked = order[np.linspace(0, len(order) - 1, PROBES).round().astype(int)]
        medium = order[len(order) // 2]
        return [steps[i] for i in (*[medium] * WARM_UP, *picked, medium)]

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Any:
        yield from map(self.step_batch, self.chosen)


class Clock(TrainerCallback):
    """When steps ended, and how long evaluations and the checkpoint took."""

    def __init__(self) -> None:
        self.ended: list[float] = []
        self.evaluations: list[float] = []
        self.evaluated_at = self.checkpoint = 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step has ended."""
        self.ended.append(time.perf_counter())

    def on_log(self, *_: Any, logs: Json, **__: Any) -> None:
        """An evaluation has ended, if it was one."""
        if "eval_loss" in logs:
            self.evaluations.append(logs["seconds"])
            self.evaluated_at = time.perf_counter()

    def on_save(self, *_: Any, **__: Any) -> None:
        """The checkpoint is written, right behind an evaluation."""
        self.checkpoint = time.perf_counter() - self.evaluated_at


def fixed(tokenizer: PreTrainedTokenizerBase, args: Arguments, job: Job) -> Json:
    """The number of `steps` that fit into `finish_in_minutes`, these `minutes`, and what was measured for it.

    Measured are `seconds` (mean of a `step`, the `first` evaluation, a later `evaluation`, a `checkpoint`) and
    `peak_memory_gib`, both of the worst rank, `tokens_per_second` of the first epoch's steps, and the evaluation `loss`
    at the end, which shows whether bits differ. UserError as by `steps_that_fit`. All ranks must call it; nothing that
    it does is left.
    """
    found = _measured(tokenizer, args, job)
    gc.collect()  # the trainer, which its callbacks hold: a GPU may not have room for two
    steps, minutes = steps_that_fit(found["seconds"], job.settings), job.settings.finish_in_minutes
    return {"steps": steps, "minutes": minutes} | found


def _measured(tokenizer: PreTrainedTokenizerBase, args: Arguments, job: Job) -> Json:
    run = Run(job.run.training / ".rehearsal.partial")
    loader = Probes(job.loader.rows, job.loader.plan, job.loader.rank, job.loader.world_size)
    last_but_one = len(loader) - 1
    changes = {"eval_steps": last_but_one, "checkpoint_steps": last_but_one, "pause_after_steps": 0, "patience": 0}
    own = replace(
        job,
        run=run,
        loader=loader,
        settings=job.settings.model_copy(update=changes),
        records=Records(run.training, active=False),
        budget=Budget(lambda: False),
        counters=Counters(),
        best=Best(),
    )
    args = copy(args)
    args.max_steps, args.lr_scheduler_type, args.report_to = len(loader), "constant", []
    clock, trainer = Clock(), SmallchatTrainer(ModelRef.parse(str(job.run.base)).load(), tokenizer, args, own)
    make_ready(trainer)
    trainer.add_callback(clock)
    trainer.train()
    if job.records.active:
        shutil.rmtree(run.path)
    step = float(np.diff(clock.ended[WARM_UP - 1 : last_but_one]).mean())
    mine = {"step": step, "first": clock.evaluations[0], "evaluation": clock.evaluations[1]}
    ranks = gather_object([mine | {"checkpoint": clock.checkpoint, "memory": peak_memory_gib()}])
    seconds = {name: round(max(rank[name] for rank in ranks), 4) for name in ranks[0]}
    tokens = int(job.loader.plan.lengths.sum()) / len(job.loader)  # of a step, in the mean
    return {
        "peak_memory_gib": seconds.pop("memory"),
        "tokens_per_second": round(tokens / seconds["step"], 1),
        "loss": trainer.held_out.mean,
        "seconds": seconds,
    }


def steps_that_fit(seconds: Json, settings: TrainSettings) -> int:
    """Optimizer steps that end within `finish_in_minutes`, with their evaluations, checkpoints and the final model.

    UserError where these are fewer than 20.
    """
    each = seconds["step"]
    for name, every in (("evaluation", settings.eval_steps), ("checkpoint", settings.checkpoint_steps)):
        each += seconds[name] / every if every else 0.0
    time_left = 60 * settings.finish_in_minutes * SHARE - 2 * seconds["first"] - seconds["checkpoint"]
    steps = int(max(0.0, time_left) / each)
    if steps < FEWEST:
        raise UserError(
            f"finish_in_minutes is {settings.finish_in_minutes:g}, and only {steps} optimizer steps fit into that: one "
            f"takes {seconds['step']:.2g} s, the first and the last evaluation {duration(seconds['first'])} each. "
            "Nothing has been trained; give it more minutes, or let it evaluate on fewer conversations."
        )
    return steps
