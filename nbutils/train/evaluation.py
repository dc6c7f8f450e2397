"""Exact evaluation loss: sums over the whole set, reduced once, the same for any batch budget and world size."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from nbutils.train.batches import blocks_of
from nbutils.train.dataset import TokenRows
from nbutils.train.loss import causal_lm_loss


@torch.no_grad()
def exact_loss(
    model: PreTrainedModel,
    rows: TokenRows,
    budget: int,
    rank: int = 0,
    world_size: int = 1,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, float]:
    """Mean loss in nats a supervised token, and top-1 accuracy, over all rows.

    Sums are kept in float64; every row counts once whatever the budget (padded tokens a micro-batch) and the number
    of processes. All ranks must call it; `autocast` makes the context in which the model runs.
    """
    device = next(model.parameters()).device
    lengths = rows.lengths()
    order = np.argsort(lengths, kind="stable")
    batches = [order[a:b] for a, b in pairwise(blocks_of(lengths[order], budget))]
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    for batch in batches[rank::world_size]:
        tensors = {name: value.to(device) for name, value in rows.tensors(batch).items()}
        with autocast():
            loss, correct = causal_lm_loss(model, tensors["input_ids"], tensors["labels"])
        sums += torch.stack([loss.double(), correct.double()])
    model.train(was_training)
    if world_size > 1:
        dist.all_reduce(sums)
    loss_sum, correct_sum = sums.tolist()
    count = int(rows.supervised_counts().sum())
    return {
        "eval_loss": loss_sum / max(count, 1),
        "eval_token_accuracy": correct_sum / max(count, 1),
        "supervised_tokens": count,
    }
