"""Loss by token position up to twice the trained length, for each way of extending a context by its rotation.

Which way is best is decided on the loss beyond the trained length, by the paired bootstrap over conversations: the same
conversations under every extension, so that what makes one hard cancels out.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from nbutils.core.bootstrap import FEWEST_GROUPS, paired_difference, word_for
from nbutils.core.chat_engine.window import EXTENSIONS, FACTOR, can_extend, rotated, rotation
from nbutils.core.files import Json
from nbutils.core.run.models import context_length
from nbutils.core.text import with_interval

BUCKETS = 16
"""Points of the curve between the first token and twice the trained length."""
ORDER = ("none", *(name for name in EXTENSIONS if name != "none"))
"""Of extensions that do alike the first is taken: none before all, as it changes nothing."""


def too_long_ids(data: Path, count: int, trained: int, seed: int) -> list[list[int]]:
    """Token ids of `count` conversations of `data/too_long` that outgrow the trained length, cut at twice that.

    Which ones, the seed decides: neighbours in the data are often by the same people or of the same source.
    """
    from datasets import load_from_disk

    folder = data / "too_long"
    if not folder.is_dir():
        return []
    rows = load_from_disk(str(folder))
    outgrown = [row for row, ids in enumerate(rows["input_ids"]) if len(ids) > trained]
    chosen = sorted(random.Random(f"context curve {seed}").sample(outgrown, min(count, len(outgrown))))
    return [list(rows[row]["input_ids"])[: FACTOR * trained] for row in chosen]


def measure_curve(model: Any, rows: Sequence[Sequence[int]], *, resamples: int, seed: int) -> Json | None:
    """The curve of a model on conversations that outgrow it; None where there are none, or it cannot be extended.

    Each extension's rotation, fixed for twice the trained length, is held for the whole conversation, the beginning
    included. Losses are in nats per token, all tokens counted. `best` is one of `none`, `dynamic`, `yarn`, `linear`:
    `none` where the conversations do not show that another is better, and None where they are too few to show
    anything; `advice` says so in a sentence.
    """
    trained = context_length(model.config)
    if not rows or not can_extend(model):
        return None
    losses = {name: losses_of(model, rows, name) for name in ORDER}  # each a list of (T - 1,)
    edges = np.linspace(0, FACTOR * trained, BUCKETS + 1).astype(int)
    beyond = {  # each (G, 2): the sum of a conversation's losses beyond the trained length, and their number
        name: np.array([(row[trained - 1 :].sum(), len(row[trained - 1 :])) for row in found], float)
        for name, found in losses.items()
    }
    return {
        "trained_length": trained,
        "positions": ((edges[:-1] + edges[1:]) // 2).tolist(),
        "curves": {name: _by_position(found, edges) for name, found in losses.items()},
        "within": {
            name: float(np.concatenate([row[: trained - 1] for row in own]).mean()) for name, own in losses.items()
        },
        **beyond_trained(beyond, trained, resamples, seed),
    }


def losses_of(model: Any, rows: Sequence[Sequence[int]], extension: str) -> list[np.ndarray]:
    """Loss of every token but the first, in each row (T - 1,), under one extension."""
    import torch
    from torch.nn.functional import cross_entropy

    longest = FACTOR * context_length(model.config)
    found = []
    with rotated(model, rotation(model, extension, longest)), torch.inference_mode():
        for row in rows:
            ids = torch.tensor([row], device=model.device)  # (1, T)
            logits = model(ids, use_cache=False).logits[0, :-1].float()  # (T - 1, V)
            found.append(cross_entropy(logits, ids[0, 1:], reduction="none").cpu().numpy())
    return found


def beyond_trained(beyond: Mapping[str, np.ndarray], trained: int, resamples: int, seed: int) -> Json:
    """What the losses beyond the trained length show, and a sentence on what to choose as `context_extension`.

    The best is the first that is distinguishably better than none, and than which no other one is, else `none`.
    """
    conversations = len(beyond["none"])
    losses = {name: float(sums[:, 0].sum() / sums[:, 1].sum()) for name, sums in beyond.items()}
    against: dict[str, dict[str, Json]] = {name: {} for name in ORDER}
    for reference, name in permutations(ORDER, 2):
        difference = paired_difference(beyond[name], beyond[reference], "mean", resamples, seed)
        against[reference][name] = asdict(difference) | {"word": word_for(difference, higher_is_better=False)}
    gains = against["none"]
    able = (name for name in gains if gains[name]["word"] == "better")
    best = next((name for name in able if all(o["word"] != "better" for o in against[name].values())), "none")
    if conversations < FEWEST_GROUPS:
        advice = (
            f"{conversations} conversations beyond {trained:,} tokens are too few to tell whether an extension helps: "
            f"raise context_curve to {FEWEST_GROUPS} or more, if the data has so many. Until then "
            "`context_extension: auto` takes `dynamic`, as the reference does."
        )
    elif best == "none":
        advice = (
            f"Beyond {trained:,} tokens no extension is distinguishably better than none: a chat is best kept within "
            f"{trained:,} tokens (`context_extension: none`)."
        )
    else:
        interval = with_interval(gains[best]["value"], gains[best]["low"], gains[best]["high"], "+")
        alike = [f"`{name}`" for name, found in against[best].items() if found["word"] == "not distinguishable"]
        advice = (
            f"Beyond {trained:,} tokens `{best}` loses {losses[best]:.2f} nats a token, against {losses['none']:.2f} "
            f"without extension, a difference of {interval}. Choose `context_extension: {best}` for chats that grow so "
            "long." + (f" Not distinguishable from it: {', '.join(alike)}." if alike else "")
        )
    return {
        "conversations": conversations,
        "tokens_beyond": int(beyond["none"][:, 1].sum()),
        "beyond": losses,
        "differences": gains,
        "best": best if conversations >= FEWEST_GROUPS else None,
        "advice": advice,
    }


def _by_position(rows: Sequence[np.ndarray], edges: np.ndarray) -> list[float | None]:
    """Mean loss between neighbouring edges, over all rows; None where no row reaches."""
    positions = np.concatenate([np.arange(1, len(row) + 1) for row in rows])
    bucket = np.searchsorted(edges, positions, side="right") - 1
    sums, counts = (np.bincount(bucket, x, minlength=BUCKETS) for x in (np.concatenate(rows), None))
    return [float(s / c) if c else None for s, c in zip(sums, counts, strict=True)]
