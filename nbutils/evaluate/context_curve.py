"""Loss by token position up to twice the trained length, for each way of extending a context by its rotation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nbutils.core.models import context_length
from nbutils.core.rotation import EXTENSIONS, FACTOR, can_extend, rotated, rotations

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BUCKETS = 16
"""Points of the curve between the first token and twice the trained length."""
ALIKE = 0.01
"""Nats per token: extensions this close do alike on so few conversations, and chat's default is then as good as any."""
DEFAULT = "dynamic"
"""Notebook 05's `context_extension`."""
ORDER = ("none", *(name for name in EXTENSIONS if name != "none"))


def too_long_ids(data: Path, count: int, trained: int) -> list[list[int]]:
    """Token ids of `count` conversations of `data/too_long` that outgrow the trained length, cut at twice that."""
    from datasets import load_from_disk

    folder = data / "too_long"
    if not folder.is_dir() or not count:
        return []
    outgrown = [ids for ids in load_from_disk(str(folder))["input_ids"] if len(ids) > trained]
    return [list(ids)[: FACTOR * trained] for ids in outgrown[:count]]


def measure_curve(model: PreTrainedModel, data: Path, count: int) -> dict[str, Any] | None:
    """The curve of a model on conversations that outgrow it; None where there are none, or it cannot be extended.

    Each extension's rotation, fixed for twice the trained length, is held for the whole conversation, the beginning
    included. Losses are in nats per token, all tokens counted; the advice compares positions beyond the trained length.
    """
    trained = context_length(model)
    rows = too_long_ids(data, count, trained)
    if not rows or not can_extend(model):
        return None
    losses = {name: losses_of(model, rows, name) for name in ORDER}  # each a list of (T - 1,)
    edges = np.linspace(0, FACTOR * trained, BUCKETS + 1).astype(int)
    curves = {name: _by_position(found, edges) for name, found in losses.items()}
    within = {name: _mean([row[: trained - 1] for row in found]) for name, found in losses.items()}
    beyond = {name: _mean([row[trained - 1 :] for row in found]) for name, found in losses.items()}
    return {
        "trained_length": trained,
        "conversations": len(rows),
        "tokens_beyond": sum(max(0, len(row) - trained) for row in rows),
        "positions": [int(p) for p in (edges[:-1] + edges[1:]) // 2],
        "curves": curves,
        "within": within,
        "beyond": beyond,
        "best": best_of(beyond),
        "advice": advice(beyond, within["none"], trained),
    }


def losses_of(model: PreTrainedModel, rows: Sequence[Sequence[int]], extension: str) -> list[np.ndarray]:
    """Loss of every token but the first, in each row (T - 1,), under one extension."""
    import torch
    from torch.nn.functional import cross_entropy

    own, extended = rotations(model, extension, FACTOR * context_length(model))
    found = []
    with rotated(model, extended if extension != "none" else own), torch.inference_mode():
        for row in rows:
            ids = torch.tensor([row], device=model.device)  # (1, T)
            logits = model(ids, use_cache=False).logits[0, :-1].float()  # (T - 1, V)
            found.append(cross_entropy(logits, ids[0, 1:], reduction="none").cpu().numpy())
    return found


def best_of(beyond: dict[str, float]) -> str:
    """The extension with the lowest loss beyond the trained length; chat's default where it does alike."""
    best = min(beyond, key=lambda name: beyond[name])
    return DEFAULT if beyond[DEFAULT] - beyond[best] < ALIKE else best


def advice(beyond: dict[str, float], within: float, trained: int) -> str:
    """A sentence about what to choose as `context_extension`, with its evidence."""
    best = best_of(beyond)
    extended = min((name for name in beyond if name != "none"), key=lambda name: beyond[name])
    if best == "none":
        return (
            f"Beyond {trained:,} tokens no extension helps this model: without one it loses {beyond['none']:.2f} nats "
            f"a token, with the best of them ({extended}) {beyond[extended]:.2f}. A chat is best kept within "
            f"{trained:,} tokens (`context_extension: none`)."
        )
    return (
        f"Beyond {trained:,} tokens `{best}` does best, or like the best: {beyond[best]:.2f} nats a token, against "
        f"{beyond['none']:.2f} without extension and {within:.2f} within the trained length. Choose "
        f"`context_extension: {best}` for chats that grow so long."
    )


def _mean(rows: Sequence[np.ndarray]) -> float:
    return float(np.concatenate(rows).mean())


def _by_position(rows: Sequence[np.ndarray], edges: np.ndarray) -> list[float | None]:
    """Mean loss between neighbouring edges, over all rows; None where no row reaches."""
    sums, counts = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    for row in rows:
        bucket = np.searchsorted(edges, np.arange(1, len(row) + 1), side="right") - 1
        keep = bucket < len(sums)
        sums += np.bincount(bucket[keep], row[keep], minlength=len(sums))
        counts += np.bincount(bucket[keep], minlength=len(sums))
    return [float(s / c) if c else None for s, c in zip(sums, counts, strict=True)]
