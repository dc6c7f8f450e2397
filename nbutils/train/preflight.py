"""What can be known to go wrong before an hour is spent: machine, disk, data, tokenizer, memory.

Each check is a function from facts to findings, so that it can be tested without the machine that it is about.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from datasets import load_from_disk
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nbutils.core.chat_engine.window import keeps_keys
from nbutils.core.chatml import IM_END
from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.core.hardware import (
    DeviceReport,
    Gpu,
    child_report,
    choose_processes,
    nvidia_gpus,
    usable_gpus,
)
from nbutils.core.run.layout import Run
from nbutils.core.run.models import TINY
from nbutils.core.text import counted, size
from nbutils.train.base import data_tokenizer, weightless_base
from nbutils.train.batches import BatchPlan
from nbutils.train.dataset import TokenRows
from nbutils.train.forecast import expected
from nbutils.train.memory import DOUBT, GIB, memory_need, room, with_microbatch
from nbutils.train.optimizer import numbers_kept
from nbutils.train.settings import MUON, TrainSettings, checked_precision, checked_trackers

STOP, NOTE, LATER, FINE = "STOP", "note", "later", "ok"
"""Levels of a finding: the run would fail or be worthless; worth knowing; cannot be checked yet; as it should be."""

CHOICES = 4
"""Replies that an item of the held-out task `heldout_next_utterance` chooses among."""


class Finding(NamedTuple):
    """One sentence about one thing, and how grave it is."""

    level: str
    text: str


# ---- all of them


def report(findings: Iterable[Finding]) -> dict[str, list[str]]:
    """Prints every finding on a line of its own, as it comes, and returns their sentences by level."""
    told = defaultdict[str, list[str]](list)
    for finding in findings:
        print(f"{finding.level:>6}  {finding.text}", flush=True)
        told[finding.level].append(finding.text)
    return told


def preflight(settings: TrainSettings) -> None:
    """Prints what notebook 02 finds before it starts. UserError with all that would stop or spoil the run."""
    if stops := report(run_findings(settings))[STOP]:
        raise UserError(f"{counted(len(stops), 'problem')} would stop this run or spoil it. " + " ".join(stops))


def run_findings(settings: TrainSettings) -> Iterator[Finding]:
    """Every finding about a run, as far as its data is there."""
    data = Run(settings.run_path).rows
    ready = (data / "summary.json").is_file()
    yield from attempt(lambda: checked_trackers(settings.report_to))
    listed = nvidia_gpus()  # torch is asked in a child process, and only where there is a GPU
    machine = yield from attempt(lambda: child_report() if listed else DeviceReport(cores=os.cpu_count() or 1))
    if machine:
        yield from device_findings(settings, machine, listed)
    model = yield from attempt(lambda: weightless_base(settings))
    tokenizer = None
    if ready:
        tokenizer = yield from attempt(lambda: data_tokenizer(settings, data))
    elif model and settings.base_model != TINY:  # which has none before notebook 01
        tokenizer = yield from attempt(settings.base_ref.tokenizer)
    if model:
        if tokenizer:  # with ChatML, and rows for the highest id
            model.resize_token_embeddings(max(tokenizer.get_vocab().values()) + 1, mean_resizing=False)
        yield Finding(FINE, f"The base model {settings.base_model} has {model.num_parameters():,} parameters.")
        yield disk_finding(settings, model)
        if settings.optimizer == MUON and settings.base_model != TINY:
            yield Finding(
                NOTE,
                "optimizer is muon: as published (arXiv:2502.16982) it brings a base that AdamW trained no advantage, "
                "and tends to be worse; take adamw_torch unless Muon trained this base too.",
            )
        if not keeps_keys(model):
            text = "The base model has no key/value cache: the chat reads everything again for each token."
            yield Finding(NOTE, text)
    if not ready:
        yield Finding(
            LATER,
            f"{shown(data)} is not there yet, so its rows, their supervision and the number of steps cannot be "
            "checked; run notebook 01, then this again.",
        )
    if model and machine and not settings.tokens_per_microbatch:
        settings = with_microbatch(settings)
        yield Finding(FINE, f"tokens_per_microbatch is 0, which comes to {settings.tokens_per_microbatch:,} here.")
    longest = settings.max_length
    if tokenizer and ready:
        try:
            rows = TokenRows.for_training(data, settings, tokenizer)
            longest = int(rows.lengths().max())
            yield from data_findings(settings, rows, data / "eval", tokenizer)
        except UserError as error:
            yield Finding(STOP, str(error))
    if machine and model:
        yield memory_finding(settings, model, longest, machine, psutil.virtual_memory().available)


def attempt(check: Callable[[], Any]) -> Generator[Finding, None, Any]:
    """What a check returns; None where it raises a UserError, which is a finding then."""
    try:
        return check()
    except UserError as error:
        yield Finding(STOP, str(error))


# ---- each of them


def device_findings(settings: TrainSettings, machine: DeviceReport, listed: tuple[Gpu, ...]) -> Iterator[Finding]:
    """Which device, precision and number of processes the run gets, and what prevents it; `listed` by `nvidia-smi`."""
    usable = usable_gpus(machine.gpus)
    processes = choose_processes(settings.processes, machine.gpus, machine.cores)
    if precision := (yield from attempt(lambda: checked_precision(settings, usable))):
        name = usable[0].name if usable else "the CPU"
        yield Finding(FINE, f"Training runs on {name} in {precision}, {counted(processes, 'process')}.")
    if settings.deterministic == "never":
        given_up = "resuming is then no longer exact to the bit"
        words = given_up if usable else "this changes nothing on the CPU, which is exact anyway"
        yield Finding(NOTE, f"deterministic is never: {words}.")
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
    """Whether the disk holds the checkpoints that are kept, one more while it is written, and the models.

    These are base and final; where the best is kept also the last, and an earlier best that a checkpoint still holds.
    """
    folder, weights = settings.run_path, 4 * model.num_parameters()  # in float32
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.is_dir())).free
    checkpoint = weights + 4 * numbers_kept(settings.optimizer, model)
    models = 4 if settings.keep == "best" and settings.eval_steps else 2
    count = settings.checkpoints_kept + 1 + (settings.schedule == "wsd")  # the one before the cool-down stays
    needed = int(1.1 * (checkpoint * count + models * weights))
    there = sum(file.stat().st_size for file in Run(folder).training.rglob("*") if file.is_file())
    text = (
        f"{count} checkpoints of {size(checkpoint)} and the models need {size(needed)}; the "
        f"disk of {shown(folder)} has {size(free)} free"
    )
    if needed <= free + there:
        return Finding(FINE, f"{text}.")
    return Finding(STOP, f"{text}; free some, lower checkpoints_kept, or choose another run_dir.")


def data_findings(
    settings: TrainSettings, rows: TokenRows, held_out: Path, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Finding]:
    """What the tokenised rows hold: optimizer steps, supervision, and the stop token inside the mask."""
    supervised, total, plan = rows.supervised_counts(), len(rows), BatchPlan.of(rows, settings)
    steps = plan.total_steps(settings.epochs, settings.max_steps)
    minutes = settings.finish_in_minutes
    if not minutes:
        yield from attempt(lambda: settings.checked_warmup(steps, plan.steps_per_epoch))
    yield Finding(
        FINE,
        f"{total:,} conversations, {plan.lengths.sum():,} tokens, {supervised.sum():,} of them supervised: "
        f"{f'as many optimizer steps as fit into {minutes:g} minutes' if minutes else f'{steps:,} optimizer steps'}, "
        f"{plan.steps_per_epoch:,} an epoch.",
    )
    if not minutes and (words := expected(settings, steps * int(plan.lengths.sum()) / plan.steps_per_epoch)):
        yield Finding(FINE, words)
    needed = {"token": (supervised, "there is nothing to learn from them; set supervise to all, or look at the data")}
    if settings.supervise_end:
        ends = rows.counting("assistant").supervised_counts(tokenizer.convert_tokens_to_ids(IM_END))
        needed[IM_END] = ends, "the model would not learn to stop; run notebook 01 again"
    else:
        yield Finding(NOTE, f"supervise_end is false: the loss leaves {IM_END} out, so replies will not stop.")
    for what, (counts, text) in needed.items():
        if without := total - np.count_nonzero(counts):
            text = f"{without:,} of {total:,} training conversations have no supervised {what}: {text}."
            yield Finding(STOP if without == total else NOTE, text)
        else:
            yield Finding(FINE, f"Every training conversation has a supervised {what}.")
    if not TokenRows.load(held_out, "assistant").supervised_counts().sum():
        yield Finding(STOP, "No evaluation conversation has a supervised token; run notebook 01 again.")
    said = defaultdict[str, set[str]](set)
    for messages in load_from_disk(str(held_out))["messages"]:
        for message in messages[1:]:  # those that answer something
            said[message["role"]].add(" ".join(message["content"].casefold().split()))
    if (most := max(map(len, said.values()), default=0)) < CHOICES:
        yield Finding(
            NOTE,
            f"The task heldout_next_utterance chooses among {CHOICES} replies, and the held-out conversations hold "
            f"{most} different ones: notebook 04 leaves it out; raise eval_fraction, unless replies are a few labels.",
        )


def memory_finding(
    settings: TrainSettings, model: PreTrainedModel, longest: int, machine: DeviceReport, free: int
) -> Finding:
    """Whether a process's predicted memory fits the device, or the `free` bytes of a machine without a usable one.

    `longest` is the longest row in tokens.
    """
    tokens = max(settings.tokens_per_microbatch, longest)
    need, (there, where) = memory_need(settings, model, tokens, machine), room(settings, machine, free)
    total = sum(need)
    text = f"A process is predicted to take {total / GIB:.1f} GiB at its peak; {where}."
    if total <= 0.9 * there:
        return Finding(FINE, text)
    advice = (
        f" Lower tokens_per_microbatch: {tokens:,} tokens take {need.activations / GIB:.1f} GiB of it."
        if need.states < 0.8 * there
        else " The model and the optimizer alone are too much: choose a smaller base_model."
    )
    return Finding(STOP if total > DOUBT * there else NOTE, text + advice)  # only what is far too much stops a run
