"""What can be known to go wrong before an hour is spent: machine, disk, data, tokenizer, memory.

Each check is a function from plain facts to findings, so that it can be tested without the machine that it is about.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nbutils.core.chatml import IM_END
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
from nbutils.train.dataset import TokenRows
from nbutils.train.memory import GIB, ModelShape, memory_need
from nbutils.train.settings import TrainSettings

STOP, NOTE, LATER, FINE = "stop", "note", "later", "ok"
"""Levels of a finding: the run would fail or be worthless; worth knowing; cannot be checked yet; as it should be."""

AMPERE = (8, 0)


@dataclass(frozen=True)
class Finding:
    """One sentence about one thing, and how grave it is."""

    level: str
    text: str


@dataclass(frozen=True)
class Machine:
    """What the checks ask of a machine: torch's report, GPUs by `nvidia-smi`, bytes of free memory and disk."""

    report: DeviceReport
    listed: tuple[Gpu, ...]
    memory: int
    disk: int

    @property
    def usable(self) -> tuple[Gpu, ...]:
        """GPUs that training can use."""
        return usable_gpus(self.report.gpus)


def this_machine(run: Path) -> Machine:
    """Facts of this machine. torch is asked in a child process, and only where `nvidia-smi` lists a GPU."""
    listed = nvidia_gpus()
    report = child_report() if listed else DeviceReport(cores=os.cpu_count() or 1)
    folder = next(parent for parent in (run, *run.parents) if parent.is_dir())
    return Machine(report, listed, psutil.virtual_memory().available, shutil.disk_usage(folder).free)


def device_findings(settings: TrainSettings, machine: Machine) -> list[Finding]:
    """Which device, precision and number of processes the run gets, and what stands against it."""
    usable, report = machine.usable, machine.report
    precision = choose_precision(settings.precision, usable)
    processes = choose_processes(settings.processes, report.gpus, report.cores)
    if usable:
        names = " and ".join(sorted({gpu.name for gpu in usable}))
        found = [Finding(FINE, f"Training runs on {names} in {precision}, {_count(processes, 'process')}.")]
    else:
        found = [Finding(FINE, f"Training runs on the CPU in {precision}, {_count(processes, 'process')}.")]
        found += _why_the_cpu(machine)
    if problem := too_few_gpus(processes, usable):
        found.append(Finding(STOP, problem))
    if not usable and processes > report.cores:
        found.append(
            Finding(NOTE, f"{processes} processes share {_count(report.cores, 'core')}; set processes to 0 for a fit.")
        )
    found += _precision_findings(precision, settings.optimizer, usable)
    return found


def too_few_gpus(processes: int, usable: Sequence[Gpu]) -> str | None:
    """A sentence where a machine with GPUs has fewer than processes; None where it fits, or trains on the CPU."""
    if not usable or processes <= len(usable):
        return None
    return (
        f"processes is {processes}, but this machine has {_count(len(usable), 'usable GPU')}; set processes to that "
        "number, or to 0 for all of them."
    )


def fp16_without_scaler(precision: str, gpus: Sequence[Gpu]) -> str | None:
    """A sentence where fp16 is asked for on the CPU, where accelerate silently makes no loss scaler."""
    if precision != "fp16" or gpus:
        return None
    return "precision is fp16, but training runs on the CPU, where gradients would underflow unscaled; set it to auto."


def fused_with_fp16(precision: str, optimizer: str) -> str | None:
    """A sentence where fused AdamW is asked for with fp16: it skips steps without telling anybody."""
    if precision != "fp16" or optimizer != "adamw_torch_fused":
        return None
    return "optimizer adamw_torch_fused hides skipped fp16 steps; use adamw_torch with precision fp16."


def _why_the_cpu(machine: Machine) -> list[Finding]:
    found = []
    for gpu in machine.report.gpus:
        capability = ".".join(map(str, gpu.capability))
        found.append(
            Finding(
                NOTE,
                f"{gpu.name} (capability {capability}) is too old for this torch, which has kernels from 7.0 on; "
                "training falls back to the CPU. On Kaggle choose T4 x2.",
            )
        )
    if machine.listed and not machine.report.gpus:
        build = f"was built for CUDA {machine.report.cuda_build}" if machine.report.cuda_build else "has no CUDA in it"
        found.append(
            Finding(
                STOP,
                f"nvidia-smi lists {machine.listed[0].name}, but torch {machine.report.torch} {build} and sees no GPU; "
                "install a torch built for this driver, or set CUDA_VISIBLE_DEVICES right.",
            )
        )
    return found


def _precision_findings(precision: str, optimizer: str, usable: tuple[Gpu, ...]) -> list[Finding]:
    found = []
    if problem := fp16_without_scaler(precision, usable):
        found.append(Finding(STOP, problem))
    older = [gpu for gpu in usable if gpu.capability < AMPERE]
    if precision == "bf16" and older:
        found.append(Finding(NOTE, f"precision is bf16, which {older[0].name} only emulates, slowly; auto takes fp16."))
    if problem := fused_with_fp16(precision, optimizer):
        found.append(Finding(STOP, problem))
    return found


def disk_findings(settings: TrainSettings, shape: ModelShape, free: int) -> list[Finding]:
    """Whether the disk holds the checkpoints that are kept, one more while it is written, base and final model."""
    folder = settings.run_path / "train"
    moments = 0 if settings.optimizer == "sgd" else 2
    checkpoint = shape.weight_bytes * (1 + moments)
    base = 0 if (folder / "base" / "config.json").is_file() else shape.weight_bytes
    needed = int(1.1 * (checkpoint * (settings.checkpoints_kept + 1) + shape.weight_bytes + base))
    there = sum(file.stat().st_size for file in (folder / "checkpoints").rglob("*") if file.is_file())
    text = (
        f"{settings.checkpoints_kept + 1} checkpoints of {_size(checkpoint)} and the models need {_size(needed)}; the "
        f"disk of {shown(settings.run_path)} has {_size(free)} free"
    )
    if needed <= free + there:
        return [Finding(FINE, f"{text}.")]
    return [Finding(STOP, f"{text}; free some, lower checkpoints_kept, or choose another run_dir.")]


def data_findings(settings: TrainSettings, data: Path, tokenizer: Any) -> list[Finding]:
    """What the tokenised rows hold: supervision, the stop token inside the mask, ids inside the vocabulary."""
    end = tokenizer.convert_tokens_to_ids(IM_END)
    try:
        rows = TokenRows.load(data / "train", settings.supervise, None if settings.supervise_end else end)
        held_out = TokenRows.load(data / "eval", "assistant")
    except UserError as error:
        return [Finding(STOP, str(error))]
    found = []
    supervised, total = rows.supervised_counts(), len(rows)
    tokens = int(rows.lengths().sum())
    found.append(Finding(FINE, f"{total:,} conversations, {tokens:,} tokens, {supervised.sum():,} of them supervised."))
    if without := int((supervised == 0).sum()):
        text = f"{without:,} of {total:,} training conversations have no supervised token"
        if without == total:
            found.append(
                Finding(STOP, f"{text}: there is nothing to learn; set supervise to all, or look at the data.")
            )
        else:
            found.append(Finding(NOTE, f"{text}; they cost time and teach nothing."))
    if not settings.supervise_end:
        found.append(Finding(NOTE, f"supervise_end is false: the loss leaves {IM_END} out, so replies will not stop."))
    elif unended := int((rows.counting("assistant").label_counts(end) == 0).sum()):
        text = f"{unended:,} of {total:,} training conversations have no supervised {IM_END}"
        level = STOP if unended == total else NOTE
        found.append(Finding(level, f"{text}: the model would not learn to stop; run notebook 01 again."))
    else:
        found.append(Finding(FINE, f"Every training conversation has {IM_END} inside its supervised part."))
    if not held_out.supervised_counts().sum():
        found.append(Finding(STOP, "No evaluation conversation has a supervised token; run notebook 01 again."))
    if (largest := max(rows.largest_id(), held_out.largest_id())) >= len(tokenizer):
        found.append(
            Finding(STOP, f"The rows hold the token id {largest}, but the tokenizer ends at {len(tokenizer) - 1}.")
        )
    return found


def tokenizer_findings(tokenizer: Any) -> list[Finding]:
    """Whether the stop token is the end of a reply, and padding is another token."""
    end, eos, pad = tokenizer.convert_tokens_to_ids(IM_END), tokenizer.eos_token_id, tokenizer.pad_token_id
    found = []
    if eos != end:
        found.append(
            Finding(STOP, f"The tokenizer's eos is {tokenizer.eos_token!r}, not {IM_END}: replies would not stop.")
        )
    if pad is None or pad == eos:
        what = "has no pad token" if pad is None else f"pads with its eos, {tokenizer.pad_token!r}"
        found.append(Finding(STOP, f"The tokenizer {what}; run notebook 01 again, which adds one of its own."))
    return found or [Finding(FINE, f"eos is {IM_END}, and padding is another token ({tokenizer.pad_token}).")]


def memory_findings(settings: TrainSettings, shape: ModelShape, longest: int, machine: Machine) -> list[Finding]:
    """Predicted peak memory of a process against its device's; `longest` is the longest row in tokens."""
    usable = machine.usable
    processes = choose_processes(settings.processes, machine.report.gpus, machine.report.cores)
    half = choose_precision(settings.precision, usable) != "fp32"
    tokens = max(settings.tokens_per_microbatch, longest)
    need = memory_need(shape, tokens, half=half, processes=processes, optimizer=settings.optimizer)
    if usable:
        smallest = min(usable, key=lambda gpu: gpu.memory_gib)
        there, where = smallest.memory_gib * GIB, f"{smallest.name} has {smallest.memory_gib:.1f} GiB"
    else:
        there = machine.memory / processes
        where = f"{machine.memory / GIB:.1f} GiB are free for {_count(processes, 'process')}"
    text = f"A process is predicted to take {need.total / GIB:.1f} GiB at its peak; {where}."
    if need.total <= 0.9 * there:
        return [Finding(FINE, text)]
    advice = (
        f" Lower tokens_per_microbatch: {tokens:,} tokens take {need.activations / GIB:.1f} GiB of it."
        if need.states < 0.8 * there
        else " The model and the optimizer alone are too much: choose a smaller base_model."
    )
    # A prediction is a fifth off at times: only what is far too much stops a run.
    return [Finding(STOP if need.total > 1.2 * there else NOTE, text + advice)]


def light_preflight(settings: TrainSettings, data: Path, model: Any, tokenizer: Any) -> list[Finding]:
    """Notebook 02's checks, all of them on what is there already; the kernel touches no device."""
    machine = this_machine(settings.run_path)
    shape = ModelShape.of(model)
    return [
        *device_findings(settings, machine),
        *disk_findings(settings, shape, machine.disk),
        *tokenizer_findings(tokenizer),
        *data_findings(settings, data, tokenizer),
        *memory_findings(settings, shape, longest_row(data), machine),
    ]


def longest_row(data: Path) -> int:
    """Tokens of the longest training row; 0 where there is no data yet."""
    return int(TokenRows.load(data / "train", "all").lengths().max()) if (data / "train").is_dir() else 0


def report(findings: Sequence[Finding]) -> None:
    """Prints every finding on a line of its own. UserError naming all that stop the run, where any does."""
    for finding in findings:
        print(f"{finding.level.upper() if finding.level == STOP else finding.level:>6}  {finding.text}")
    stops = [finding.text for finding in findings if finding.level == STOP]
    if stops:
        raise UserError(f"{_count(len(stops), 'problem')} would stop this run or spoil it. " + " ".join(stops))


def _count(number: int, word: str) -> str:
    plural = f"{word}es" if word.endswith("s") else f"{word}s"
    return f"{number} {word if number == 1 else plural}"


def _size(count: float) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.0f} MiB"
