"""Muon for the matrices inside a model and AdamW for all else, as one optimizer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nbutils.train.settings import MUON, OPTIMIZERS

MOMENTUM = 0.95
ITERATIONS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)
"""Of Newton–Schulz, as in torch.optim.Muon."""
AT_ONCE = 2**24
"""Numbers of equal matrices that are made orthogonal together: this bounds the memory that it takes."""


def hidden_matrices(model: PreTrainedModel) -> set[Tensor]:
    """The weights of the model's linear layers, without its head."""
    linear = (part for part in model.modules() if isinstance(part, torch.nn.Linear | Conv1D))
    return {part.weight for part in linear} - {model.get_output_embeddings().weight}


def numbers_kept(optimizer: str, model: PreTrainedModel) -> int:
    """How many numbers an optimizer keeps of a model from step to step."""
    fewer = sum(matrix.numel() for matrix in hidden_matrices(model)) if optimizer == MUON else 0
    return OPTIMIZERS[optimizer] * model.num_parameters() - fewer


def orthogonal(matrices: Tensor) -> Tensor:
    """The matrices (B, R, C), R <= C, with singular values near 1, by Newton–Schulz.

    In bfloat16 on a GPU that computes in it, else in float32: a CPU, or a T4, is slow in bfloat16.
    """
    half = matrices.is_cuda and torch.cuda.get_device_capability(matrices.device) >= (8, 0)
    x = matrices.bfloat16() if half else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT  # (B, R, R)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for `hidden` matrices, AdamW with these `options` for the other parameters.

    Muon's updates have the root mean square of AdamW's (Liu et al. 2025, Muon is Scalable for LLM Training), so that
    one learning rate serves both. It equals torch.optim.Muon with `match_rms_adamw`, which takes one matrix after the
    other, on every rank all of them, and always in bfloat16.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], hidden: set[Tensor], **options: Any) -> None:
        self.adamw = torch.optim.AdamW([torch.zeros(1)], **options)  # its parameters are given at each step
        split = [
            group | {"params": part, "hidden": own}
            for group in groups
            for own in (True, False)
            if (part := [p for p in group["params"] if (p in hidden) is own])
        ]
        super().__init__(split, self.adamw.defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates all parameters that have a gradient. All ranks must call it."""
        for group in self.param_groups:
            if group["hidden"]:
                self._update(group)
        self.adamw.param_groups = [group for group in self.param_groups if not group["hidden"]]
        self.adamw.state = self.state
        self.adamw.step()

    def _update(self, group: dict[str, Any]) -> None:
        alike = defaultdict[tuple[int, ...], list[Tensor]](list)
        for matrix in group["params"]:
            if matrix.grad is not None:
                alike[tuple(sorted(matrix.shape))].append(matrix)
        for (short, long), same in alike.items():
            count = max(1, AT_ONCE // (short * long))
            for start in range(0, len(same), count):
                some = same[start : start + count]
                updates = shared_out(torch.stack([wide(self._momentum(matrix)) for matrix in some]))
                for matrix, update in zip(some, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    wide(matrix).add_(update, alpha=-0.2 * math.sqrt(long) * group["lr"])

    def _momentum(self, matrix: Tensor) -> Tensor:
        """Nesterov's: the gradient, drawn towards its running mean."""
        gradient: Any = matrix.grad
        if not self.state[matrix]:
            self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        mean = self.state[matrix]["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(mean, MOMENTUM)


def shared_out(matrices: Tensor) -> Tensor:
    """The matrices (B, R, C) made orthogonal in place: each rank does its share, and gets the others'."""
    state = PartialState()
    shares = matrices.split(-(-len(matrices) // state.num_processes))
    if state.process_index < len(shares):
        shares[state.process_index].copy_(orthogonal(shares[state.process_index]))
    if state.num_processes > 1:
        for rank, share in enumerate(shares):
            dist.broadcast(share, rank)
    return matrices


def wide(matrix: Tensor) -> Tensor:
    """A matrix, or its transpose where it is taller than wide."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
