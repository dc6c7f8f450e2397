"""What can be known to go wrong before an hour is spent: machine, disk, data, model.

Each check is a function from facts to findings, so that it can be tested without the machine that it is about.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nbutils.core.chat_engine.window import keeps_keys
from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.core.hardware import (
    DeviceReport,
    Gpu,
    child_report,
    choose_precision,
    choose_processes,
    nvidia_gpus,
    usable_gpus,
)
from nbutils.core.run.layout import Run
from nbutils.core.run.models import TINY
from nbutils.core.text import size
from nbutils.train.base import data_tokenizer, weightless_base
from nbutils.train.batches import BatchPlan
from nbutils.train.dataset import TokenRows
from nbutils.train.settings import OPTIMIZERS, TrainSettings, checked_trackers, precision_problem

STOP, NOTE, LATER, FINE = "STOP", "note", "later", "ok"
"""Levels of a finding: the run would fail or be worthless; worth knowing; cannot be checked yet; as it should be."""


@dataclass(frozen=True)
class Finding:
    """One sentence about one thing, and how grave it is."""

    level: str
    text: str


# ---- all of them


def report(findings: Iterable[Finding]) -> dict[str, list[str]]:
    """Prints every finding on a line of its own, as it comes, and returns their sentences by level."""
    told: dict[str, list[str]] = {level: [] for level in (STOP, NOTE, LATER, FINE)}
    for finding in findings:
        print(f"{finding.level:>6}  {finding.text}", flush=True)
        told[finding.level].append(finding.text)
    return told


def preflight(settings: TrainSettings) -> None:
    """Prints what notebook 02 finds before it starts. UserError with all that would stop or spoil the run."""
    if stops := report(run_findings(settings))[STOP]:
        raise UserError(f"{counted(len(stops), 'problem')} would stop this run or spoil it. " + " ".join(stops))


def run_findings(settings: TrainSettings) -> Iterator[Finding]:
    """Every finding about a run, as far as its data is there; a check that fails says so at the end."""
    failed: list[Finding] = []

    def attempt(check: Callable[[], Any]) -> Any:
        try:
            return check()
        except UserError as error:
            failed.append(Finding(STOP, str(error)))

    data = Run(settings.run_path).rows
    ready = (data / "summary.json").is_file()
    attempt(lambda: checked_trackers(settings.report_to))
    listed = nvidia_gpus()  # torch is asked in a child process, and only where there is a GPU
    if machine := attempt(lambda: child_report() if listed else DeviceReport(cores=os.cpu_count() or 1)):
        yield from device_findings(settings, machine, listed)
    tokenizer = None  # `tiny` has none before notebook 01
    if ready or settings.base_model != TINY:
        tokenizer = attempt(lambda: data_tokenizer(settings, data) if ready else settings.base_ref.tokenizer())
    if model := attempt(lambda: weightless_base(settings)):
        yield Finding(FINE, f"The base model {settings.base_model} has {model.num_parameters():,} parameters.")
        yield disk_finding(settings, model)
        if not keeps_keys(model):
            text = "The base model has no key/value cache: the chat reads everything again for each token."
            yield Finding(NOTE, text)
    if not ready:
        yield Finding(
            LATER,
            f"{shown(data)} is not there yet, so its rows, their supervision and the number of steps cannot be "
            "checked; run notebook 01, then this again.",
        )
    elif tokenizer:
        yield from attempt(lambda: list(data_findings(settings, data, tokenizer))) or ()
    yield from dict.fromkeys(failed)  # a base that cannot be had fails twice in the same words


# ---- each of them


def device_findings(settings: TrainSettings, machine: DeviceReport, listed: tuple[Gpu, ...]) -> Iterator[Finding]:
    """Which device, precision and number of processes the run gets, and what prevents it; `listed` by `nvidia-smi`."""
    usable = usable_gpus(machine.gpus)
    precision = choose_precision(settings.precision, usable)
    processes = choose_processes(settings.processes, machine.gpus, machine.cores)
    names = " and ".join(sorted({gpu.name for gpu in usable})) or "the CPU"
    problem = precision_problem(precision, settings.optimizer, usable)
    fine = f"Training runs on {names} in {precision}, {counted(processes, 'process')}."
    yield Finding(STOP, problem) if problem else Finding(FINE, fine)
    if usable and processes > len(usable):
        yield Finding(
            STOP,
            f"processes is {processes}, but this machine has {counted(len(usable), 'usable GPU')}; set processes to "
            "that number, or to 0 for all of them.",
        )
    if machine.gpus and not usable:
        yield Finding(
            NOTE,
            f"{machine.gpus[0].name} is too old for this torch, which has kernels from capability 7.0 on; training "
            "falls back to the CPU. On Kaggle choose T4 x2.",
        )
    if listed and not machine.gpus:
        build = f"was built for CUDA {machine.cuda_build}" if machine.cuda_build else "has no CUDA in it"
        yield Finding(
            STOP,
            f"nvidia-smi lists {listed[0].name}, but torch {machine.torch} {build} and sees no GPU; "
            "install a torch built for this driver, or set CUDA_VISIBLE_DEVICES right.",
        )


def disk_finding(settings: TrainSettings, model: PreTrainedModel) -> Finding:
    """Whether the disk holds the checkpoints that are kept, one more while it is written, base and final model."""
    folder, weights = settings.run_path, 4 * model.num_parameters()  # in float32
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.is_dir())).free
    checkpoint = weights * (1 + OPTIMIZERS[settings.optimizer])
    needed = int(1.1 * (checkpoint * (settings.checkpoints_kept + 1) + 2 * weights))
    there = sum(file.stat().st_size for file in Run(folder).training.rglob("*") if file.is_file())
    text = (
        f"{settings.checkpoints_kept + 1} checkpoints of {size(checkpoint)} and the models need {size(needed)}; the "
        f"disk of {shown(folder)} has {size(free)} free"
    )
    if needed <= free + there:
        return Finding(FINE, f"{text}.")
    return Finding(STOP, f"{text}; free some, lower checkpoints_kept, or choose another run_dir.")


def data_findings(settings: TrainSettings, data: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """What the tokenised rows hold: optimizer steps and supervision."""
    rows = TokenRows.for_training(data, settings, tokenizer)
    supervised, total, plan = rows.supervised_counts(), len(rows), BatchPlan.of(rows, settings)
    steps = plan.total_steps(settings.epochs, settings.max_steps)
    yield Finding(FINE, f"The run takes {steps:,} optimizer steps, {plan.steps_per_epoch:,} an epoch.")
    tokens = f"{plan.lengths.sum():,} tokens, {supervised.sum():,} of them supervised"
    yield Finding(FINE, f"{total:,} conversations, {tokens}.")
    without = int((supervised == 0).sum())
    text = f"{without:,} of {total:,} training conversations have no supervised token"
    if without == total:
        yield Finding(STOP, f"{text}: there is nothing to learn; set supervise to all, or look at the data.")
    elif without:
        yield Finding(NOTE, f"{text}; they cost time and teach nothing.")
    if not TokenRows.load(data / "eval", "assistant").supervised_counts().sum():
        yield Finding(STOP, "No evaluation conversation has a supervised token; run notebook 01 again.")


def counted(number: int, word: str) -> str:
    """A number with its word, in the plural where there are several."""
    return f"{number} {word}" + ("" if number == 1 else "es" if word.endswith("s") else "s")
