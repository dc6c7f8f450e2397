"""How a device computes what is trained: deterministic algorithms, and compiled layers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers.integrations import sdpa_attention
from transformers.modeling_layers import GradientCheckpointingLayer

from nbutils.core.files import resolve
from nbutils.core.hardware import Gpu

if TYPE_CHECKING:
    from nbutils.train.trainer import SmallchatTrainer

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Environment variable without which cuBLAS may sum in another order from run to run."""
CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable with the folder of compiled code."""


def make_ready(trainer: SmallchatTrainer) -> list[str]:
    """Settles how this trainer's device computes; sentences, or empty ones, about what a person should know.

    All ranks must call it. No weight changes, and gradients are left empty.
    """
    asked, told = trainer.job.settings.compile, []
    if torch.are_deterministic_algorithms_enabled():
        told.append(relax_where_needed(trainer))
    if asked == "always" or (asked == "auto" and trainer.args.device.type == "cuda"):
        told.append(compile_layers(trainer))
    return told


def make_deterministic() -> None:
    """Chooses deterministic algorithms for this process's GPU; the CPU's are so already.

    Strictly, without `warn_only`: under that the backward pass of memory-efficient attention, which a T4 takes, keeps
    to its nondeterministic algorithm (aten/src/ATen/native/transformers/cuda/attention_backward.cu), and flash
    attention's likewise.
    """
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time


def repeat_shared_heads(precision: str, gpus: Sequence[Gpu]) -> None:
    """Has keys and values that heads share repeated, in this process, where flash attention cannot compute on a GPU.

    It computes in half precision from capability 8.0 on. transformers leaves the sharing to torch, whose
    memory-efficient attention knows none (`scaled_dot_product_attention`, "GQA"): the math kernel would then hold the
    float32 scores of each pair of tokens.
    """
    if gpus and (precision == "fp32" or min(gpu.capability for gpu in gpus) < (8, 0)):
        sdpa_attention.use_gqa_in_sdpa = lambda *_: False


def relax_where_needed(trainer: SmallchatTrainer) -> str:
    """Computes one micro-batch; where an operation has no deterministic form, torch may warn from now on.

    Returns a sentence about it for people, or nothing where all is deterministic.
    """
    try:
        _gradients(trainer, typical_rows(trainer))
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        torch.use_deterministic_algorithms(True, warn_only=True)
        operation = str(error).split(" ", 1)[0]
        return (
            f"{operation} has no deterministic form on this device, so a resumed run will not be bit-identical to one "
            "never disturbed."
        )
    return ""


def compile_layers(trainer: SmallchatTrainer) -> str:
    """Has torch compile the decoder layers where gradients are computed; evaluation and replies stay as they are.

    It happens here, for rows of any number and length, with the same rows in every session: what is compiled later
    might be another code. Returns a sentence where it failed; the layers are then as they were, on all ranks.
    """
    os.environ.setdefault(CACHE, str(resolve("runs/.cache/inductor")))
    layers: list[Any] = [part for part in trainer.model.modules() if isinstance(part, GradientCheckpointingLayer)]
    rows, problem = typical_rows(trainer), ""
    trainer.model.train()
    try:
        for layer in layers:
            layer.forward = _compiled_in_training(layer.forward)
        _gradients(trainer, rows)
        _gradients(trainer, rows[:1])  # torch takes a size of 1 for a constant
    except Exception as error:  # of the compiler, whatever is wrong with it
        problem = repr(getattr(error, "inner_exception", error)).partition("\\n")[0]
    problems = [*filter(None, gather_object([problem]))]
    trainer.compiled = torch._dynamo.config.suppress_errors = not problems  # of what might yet have to be compiled
    if not problems:
        return ""
    for layer in layers:
        vars(layer).pop("forward", None)
    return f"The layers could not be compiled, and are computed as with compile: never ({problems[0]})."


def _compiled_in_training(forward: Any) -> Any:
    # inductor times what it could choose from; an older one refuses the option, and is not exact
    options: Any = {"deterministic": True} if torch.are_deterministic_algorithms_enabled() else None
    compiled = torch.compile(forward, dynamic=True, options=options)
    return lambda *args, **kwargs: (compiled if torch.is_grad_enabled() else forward)(*args, **kwargs)


def typical_rows(trainer: SmallchatTrainer) -> np.ndarray:
    """The row numbers of the first step's micro-batch of most rows, the same on all ranks and in all sessions."""
    plan = trainer.job.loader.plan
    return max(plan.microbatches(plan.steps(0)[0]), key=len)


def _gradients(trainer: SmallchatTrainer, rows: np.ndarray) -> None:
    """Computes the gradients of a micro-batch, waits for them, and drops them."""
    batch = trainer.job.loader.rows.tensors(rows).to(trainer.args.device)
    try:
        with trainer.accelerator.autocast():  # as accelerate does once training begins
            loss = trainer.compute_loss(trainer.model, batch)["loss_sum"]
        loss.backward()
        loss.item()
    finally:
        trainer.model.zero_grad(set_to_none=True)
