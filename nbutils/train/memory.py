"""What memory training needs, and the micro-batch that fits into what there is."""

from __future__ import annotations

import os
from typing import NamedTuple

import psutil
from transformers import PreTrainedModel

from nbutils.core.hardware import DeviceReport, choose_precision, choose_processes, usable_gpus, visible_gpus
from nbutils.core.run.layout import Run
from nbutils.core.text import counted
from nbutils.train.base import weightless_base
from nbutils.train.loss import CHUNK
from nbutils.train.optimizer import numbers_kept
from nbutils.train.settings import TrainSettings

GIB = 2**30
DOUBT = 1.2
"""A prediction is a fifth off at times."""
LEAST, MOST_ON_A_CPU = 256, 1024
"""Tokens of the smallest micro-batch that is chosen, and of the largest on a CPU, which gains nothing from more."""


class MemoryNeed(NamedTuple):
    """Predicted peak memory of one training process, in bytes."""

    states: int
    """Weights, gradients, the optimizer's moments, DDP's copy of the gradients."""
    activations: int
    """What the backward pass needs of one micro-batch, and the logits of one chunk of the loss."""

    framework: int = int(0.7 * GIB)
    """What a process takes before there is a model: Python, torch and its libraries, or a CUDA context."""


def memory_need(settings: TrainSettings, model: PreTrainedModel, tokens: int, machine: DeviceReport) -> MemoryNeed:
    """Predicted memory of a process for micro-batches of so many padded tokens on such a machine.

    Counted from what autograd keeps of a Llama layer, as in Korthikanti et al. 2022 (Reducing Activation
    Recomputation): 11 values of the hidden size and 4 of the intermediate size for each token, and no attention
    matrix; in fp16 or bf16 about four fifths of the bytes. A feed-forward part without a gate, as GPT-2's, keeps 8.
    """
    processes = choose_processes(settings.processes, machine.gpus, machine.cores)
    bytes_kept = 4 if choose_precision(settings.precision, machine.gpus) == "fp32" else 3.2
    config = model.config.get_text_config()
    hidden, vocabulary = config.hidden_size, config.vocab_size
    gated = getattr(config, "intermediate_size", 0)
    between = 4 * gated or 8 * (getattr(config, "n_inner", None) or 4 * hidden)
    states = 4 * (model.num_parameters() * (2 + (processes > 1)) + numbers_kept(settings.optimizer, model))
    layers = int(bytes_kept * (11 * hidden + between) * config.num_hidden_layers * tokens)
    logits = 8 * min(CHUNK, tokens) * vocabulary
    head = 4 * vocabulary * hidden + 8 * tokens * hidden
    return MemoryNeed(states, layers + logits + head)


def room(settings: TrainSettings, machine: DeviceReport, free: int) -> tuple[float, str]:
    """Bytes that a process may take, and what has them: the smallest usable GPU, or without one its share of `free`."""
    if usable := usable_gpus(machine.gpus):
        smallest = min(usable, key=lambda gpu: gpu.memory_gib)
        return smallest.memory_gib * GIB, f"{smallest.name} has {smallest.memory_gib:.1f} GiB"
    processes = choose_processes(settings.processes, machine.gpus, machine.cores)
    return free / processes, f"{free / GIB:.1f} GiB are free for {counted(processes, 'process')}"


def fitting_microbatch(settings: TrainSettings, model: PreTrainedModel, machine: DeviceReport, free: int) -> int:
    """Tokens of the largest micro-batch that surely fits: 256, doubled as often as possible up to a step's share."""
    share = -(-settings.tokens_per_step // choose_processes(settings.processes, machine.gpus, machine.cores))
    most = share if usable_gpus(machine.gpus) else min(share, MOST_ON_A_CPU)
    tokens, (there, _) = LEAST, room(settings, machine, free)
    while tokens < most and DOUBT * sum(memory_need(settings, model, 2 * tokens, machine)) <= there:
        tokens *= 2
    return min(tokens, most)


def with_microbatch(settings: TrainSettings) -> TrainSettings:
    """The settings with a number for `tokens_per_microbatch` where it is 0.

    That of the run's newest checkpoint, else what fits into this machine's memory. UserError as by `weightless_base`.
    """
    if settings.tokens_per_microbatch:
        return settings
    if checkpoint := Run(settings.run_path).newest_sealed():
        tokens = checkpoint.manifest["identity"]["parameters"]["tokens_per_microbatch"]
    else:
        machine = DeviceReport(visible_gpus(), cores=os.cpu_count() or 1)
        model, free = weightless_base(settings), psutil.virtual_memory().available
        tokens = fitting_microbatch(settings, model, machine, free)
    return settings.model_copy(update={"tokens_per_microbatch": tokens})
