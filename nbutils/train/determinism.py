"""The same bits from a GPU each time: torch's deterministic algorithms, and a warning where a model has none."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from nbutils.train.trainer import SmallchatTrainer

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Environment variable without which cuBLAS may sum in another order from run to run."""

PROBE = 16
"""Tokens of the micro-batch that asks a model for an operation without a deterministic form."""


def make_deterministic(on_gpu: bool) -> None:
    """Chooses deterministic algorithms for this process; the CPU's are so already, and are left as they are.

    Strictly, without `warn_only`: under that the backward pass of memory-efficient attention, which a T4 takes, keeps
    to its nondeterministic algorithm (aten/src/ATen/native/transformers/cuda/attention_backward.cu), and flash
    attention's likewise.
    """
    if on_gpu:
        os.environ.setdefault(WORKSPACE, ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time


def relax_where_needed(trainer: SmallchatTrainer) -> str | None:
    """Computes one short step; where an operation has no deterministic form, torch may warn from now on.

    Returns a sentence about it for people, or None where all is deterministic. Gradients are left empty.
    """
    ids = torch.arange(PROBE, device=trainer.args.device)[None] % trainer.model.config.get_text_config().vocab_size
    try:
        trainer.model.train()
        with trainer.compute_loss_context_manager():
            out = trainer.compute_loss(trainer.model, {"input_ids": ids, "labels": ids})
        out["loss_sum"].backward()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        torch.use_deterministic_algorithms(True, warn_only=True)
        operation = str(error).split(" ", 1)[0]
        return (
            f"{operation} has no deterministic form on this device, so a resumed run will not be bit-identical to one "
            "never disturbed."
        )
    finally:
        trainer.model.zero_grad(set_to_none=True)
    return None
