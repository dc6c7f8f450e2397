"""What notebook 02 shows: supervised tokens in colour, the plain loop beside the worker, replies before and after."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pandas as pd
from IPython.display import HTML

COLOURS = "background:#2f81f733;border-bottom:2px solid #2f81f7;text-decoration:none"


def supervised_text(tokenizer: Any, input_ids: Sequence[int], supervised: Sequence[bool], limit: int = 160) -> HTML:
    """One conversation as the model reads it, up to `limit` tokens; what the loss counts is marked."""
    pieces = []
    pairs = list(zip(input_ids, supervised, strict=True))[:limit]
    for counted, run in groupby(pairs, key=lambda pair: pair[1]):
        text = html.escape(tokenizer.decode([int(token) for token, _ in run])).replace("\n", "<br>")
        pieces.append(f'<ins style="{COLOURS}">{text}</ins>' if counted else text)
    more = f"<br>… and {len(input_ids) - limit} more tokens" if len(input_ids) > limit else ""
    share = f"{sum(map(bool, supervised))} of {len(supervised)} tokens are supervised (marked)."
    body = "".join(pieces) + more
    return HTML(f'<p>{share}</p><div style="font-family:monospace;line-height:1.7;max-width:60em">{body}</div>')


def before_and_after(samples: Sequence[dict[str, Any]]) -> HTML:
    """The replies of the untrained and of the trained model to the same prompts, side by side and in full."""
    if not samples:
        return HTML("<p>There are no sample replies yet.</p>")
    first, last = min(s["step"] for s in samples), max(s["step"] for s in samples)
    table = {f"step {step}": {s["prompt"]: _cell(s) for s in samples if s["step"] == step} for step in (first, last)}
    with pd.option_context("display.max_colwidth", None):
        return HTML(pd.DataFrame(table).rename_axis("prompt").reset_index().to_html(index=False, justify="left"))


def plain_against_worker(
    losses: Sequence[float], norms: Sequence[float], rows: Sequence[dict[str, Any]]
) -> pd.DataFrame:
    """Loss and gradient norm of the plain loop's steps beside those that the worker logged for the same steps.

    `difference` is the larger of the two relative differences.
    """
    logged = {row["step"]: row for row in rows if row["kind"] == "train"}
    table = []
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
        if row := logged.get(step):
            off = max(abs(loss / row["loss"] - 1), abs(norm / row["grad_norm"] - 1))
            table.append((step, loss, row["loss"], norm, row["grad_norm"], off))
    columns = ["step", "loss, plain loop", "loss, worker", "gradient norm, plain loop", "gradient norm, worker"]
    return pd.DataFrame(table, columns=[*columns, "difference"]).set_index("step")


def _cell(sample: dict[str, Any]) -> str:
    text = sample["reply"] or "(nothing)"
    return text + ("" if sample["ended"] else " …(never ends)")
