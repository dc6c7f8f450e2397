"""What notebook 01 shows: tables, figures and one conversation. Nothing here changes what the stage makes."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from nbutils.core.charts import DPI, THEMES, WIDTH, Theme, add_legend, new_figure, save
from nbutils.core.chatml import encode
from nbutils.data.batches import Source
from nbutils.data.fates import KEPT, REASONS, TOO_LONG

if TYPE_CHECKING:
    from IPython.display import HTML, Image
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase


LOOKED_AT = 200
"""Conversations among which one is picked to be shown."""


def sources_table(sources: Sequence[Source]) -> pd.DataFrame:
    """Each dataset with the shape that was found."""
    rows = [
        {
            "dataset": source.label,
            "shape": source.shape.name,
            "columns": ", ".join(source.columns),
            "rows": "not known yet" if source.rows is None else f"{source.rows:,}",
            "share taken": f"{source.spec.fraction:.0%}",
            "revision": source.revision[:12] or "–",
            "files taken": _listed(source.files) or "all",
        }
        for source in sources
    ]
    frame = pd.DataFrame(rows).set_index("dataset")
    return frame if any(source.files for source in sources) else frame.drop(columns="files taken")


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def fates_table(summary: dict[str, Any]) -> pd.DataFrame:
    """Rows and tokens by fate, in the order in which reasons are looked for, with what each means.

    Rows that a `fraction` left out have no fate; they have a line of their own, outside the shares.
    """
    rows = []
    for fate in (*REASONS, KEPT):
        counts, meaning = summary["fates"][fate], REASONS.get(fate, "goes into the training or the evaluation set")
        share = f"{counts['rows'] / max(1, summary['rows']):.1%}"
        rows.append((fate, f"{counts['rows']:,}", share, f"{counts['tokens']:,}", meaning))
    if summary["rows_not_taken"]:
        left_out = f"left out by the fractions in `datasets`; {summary['rows']:,} rows were taken"
        rows.append(("not taken", f"{summary['rows_not_taken']:,}", "–", "–", left_out))
    return pd.DataFrame(rows, columns=["fate", "rows", "share of rows", "tokens read", "meaning"]).set_index("fate")


def contamination_line(summary: dict[str, Any]) -> str:
    """What was looked for of the evaluation tasks, and how much of it can't be found."""
    found = summary["contamination"]
    if found is None:
        return "Contamination was not looked for: contamination_tasks names no evaluation task."
    return (
        f"Contamination was looked for with {', '.join(found['tasks'])}: {found['items']:,} items, "
        f"{found['items_too_short']:,} too short to be found (fewer than {found['words']} words)."
    )


def waterfall(summary: dict[str, Any], folder: Path) -> Image:
    """What each reason takes away, in rows and in tokens read, down to what is kept; saved in `folder`."""
    return _saved(folder, "fates", lambda theme: _waterfall(summary, theme))


def _waterfall(summary: dict[str, Any], theme: str) -> Figure:
    fates = summary["fates"]
    shown = [reason for reason in REASONS if fates[reason]["rows"]]
    figure, (left, right) = new_figure(1, 2, theme=theme, height=1.3 + 0.3 * (len(shown) + 2))
    figure.subplots_adjust(left=0.17, wspace=0.18, right=0.94)
    for axes, unit in ((left, "rows"), (right, "tokens")):
        _fall(axes, {fate: fates[fate][unit] for fate in (*shown, KEPT)}, THEMES[theme])
        axes.set_xlabel(unit if unit == "rows" else "tokens read", fontsize=8)
    right.set_yticklabels([])
    return figure


def _fall(axes: Axes, counts: dict[str, int], colours: Theme) -> None:
    total = left = sum(counts.values())
    bars = [("all", 0, total, colours.faint)]
    for reason, count in list(counts.items())[:-1]:
        left -= count
        bars.append((reason, left, count, colours.second))
    bars.append((KEPT, 0, left, colours.first))
    names, starts, widths, fills = zip(*bars, strict=True)
    axes.barh(names, widths, left=starts, color=fills, height=0.7)
    for y, (start, width) in enumerate(zip(starts, widths, strict=True)):
        axes.text(
            start + width + total * 0.015,
            y,
            _short(width) if width else "–",
            va="center",
            fontsize=8,
            color=colours.ink,
        )
    axes.invert_yaxis()
    axes.set_xlim(0, max(total, 1) * 1.17)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.grid(False, axis="y")


def _short(number: float) -> str:
    return f"{number / 1e6:.3g} M" if number >= 1e6 else f"{number:,.0f}"


def length_histogram(summary: dict[str, Any], ledger: Path, folder: Path) -> Image:
    """Conversations by length in tokens with the limit drawn in; saved in `folder`.

    Up to the limit all are counted, from the ledger; beyond it those that were counted to their end stand for all.
    """
    counted = pq.read_table(ledger, columns=["tokens"], filters=[("fate", "!=", TOO_LONG)])["tokens"].drop_null()
    return _saved(folder, "lengths", lambda theme: _lengths(summary, counted.to_numpy(), theme))


def _lengths(summary: dict[str, Any], fits: np.ndarray, theme: str) -> Figure:
    colours, limit, long = THEMES[theme], summary["max_length"], summary["long_lengths"]
    width = long["bin_tokens"]
    edges = [width * i for i in range(round(limit / width) + 1)]
    figure, (axes,) = new_figure(1, 1, theme=theme, height=3.2)
    axes.hist(fits, bins=edges, color=colours.first, edgecolor=colours.page, linewidth=0.6, label=f"fit: {len(fits):,}")
    if long["of"]:
        each = long["of"] / long["counted"]
        heights = [each * rows for rows in (*long["rows"], long["rows_beyond"])]
        lefts = [limit + width * i for i in range(len(heights))]
        estimate = f" (lengths from {long['counted']:,} of them)" if long["counted"] < long["of"] else ""
        axes.bar(lefts, heights, width, align="edge", color=colours.second, edgecolor=colours.page, linewidth=0.6,
                 label=f"too long: {long['of']:,}, dropped whole{estimate}")  # fmt: skip
        axes.set_xlabel("tokens of the conversation in ChatML (the last bar stands for all that is longer)", fontsize=8)
    else:
        axes.set_xlabel("tokens of the conversation in ChatML", fontsize=8)
    axes.axvline(limit, color=colours.ink, linestyle="--", linewidth=1.2)
    axes.text(limit, axes.get_ylim()[1], f" max_length = {limit:,}", va="top", fontsize=8, color=colours.ink)
    axes.set_ylabel("conversations", fontsize=8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlim(0)
    add_legend(axes, theme, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return figure


def _saved(folder: Path, name: str, draw: Callable[[str], Figure]) -> Image:
    """Writes a figure as PNG and SVG, light and dark (`-dark`); returns the light one."""
    from IPython.display import Image

    save(draw, folder, name)
    return Image(filename=str(folder / f"{name}.png"), width=round(WIDTH * DPI))


def roles_table(summary: dict[str, Any]) -> pd.DataFrame:
    """Tokens of the kept conversations by who speaks."""
    roles = summary["tokens_per_role"]
    total = sum(counts["text"] + counts["control"] for counts in roles.values())
    rows = [
        {
            "role": role,
            "turns": f"{counts['turns']:,}",
            "tokens of text": f"{counts['text']:,}",
            "tokens of control": f"{counts['control']:,}",
            "share of all tokens": f"{(counts['text'] + counts['control']) / max(1, total):.1%}",
            "tokens a turn": f"{counts['text'] / max(1, counts['turns']):.1f}",
        }
        for role, counts in roles.items()
    ]
    return pd.DataFrame(rows).set_index("role")


def sets_table(summary: dict[str, Any]) -> pd.DataFrame:
    """What each set holds."""
    names = {"train": "training", "eval": "evaluation", "too_long": "over-long, of the evaluation side"}
    rows = [{"set": label} | {key: f"{summary[name][key]:,}" for key in summary[name]} for name, label in names.items()]
    return (
        pd.DataFrame(rows)
        .rename(columns={"rows": "conversations", "supervised_tokens": "supervised tokens"})
        .set_index("set")
    )


def limits_table(summary: dict[str, Any]) -> pd.DataFrame:
    """What other limits would drop; ≈ marks an estimate."""
    rows = [
        {
            "max_length": f"{cost['limit']:,}" + (" (this run)" if cost["limit"] == summary["max_length"] else ""),
            "conversations dropped": ("≈ " if cost["rows_estimated"] else "") + f"{cost['share_of_rows']:.1%}",
            "tokens dropped": ("≈ " if cost["tokens_estimated"] else "") + f"{cost['share_of_tokens']:.1%}",
        }
        for cost in summary["limits"]
    ]
    return pd.DataFrame(rows).set_index("max_length")


def drops_table(samples: dict[str, list[dict[str, Any]]]) -> HTML:
    """Dropped rows for each reason; texts are escaped."""
    from IPython.display import HTML

    rows = [
        (reason, f"{row['source']} row {row['index']}", row["detail"] or "–", row["text"])
        for reason, found in samples.items()
        for row in found
    ]
    frame = pd.DataFrame(rows, columns=["reason", "row", "detail", "begins with"], dtype=str)
    frame = frame.map(lambda text: html.escape(text).replace("\n", "<br>")).set_index(["reason", "row"])
    with pd.option_context("display.max_colwidth", None):
        return HTML(frame.to_html(escape=False, justify="left"))


def example(folder: Path, turns: int = 4) -> list[dict[str, str]]:
    """A whole conversation of a set: of the first ones, the shortest that has `turns` turns or more (else the longest).

    Only the first LOOKED_AT are read, however long the set is.
    """
    from datasets import load_from_disk

    rows = load_from_disk(folder).select_columns(["messages"])
    found: list[list[dict[str, str]]] = list(rows[:LOOKED_AT]["messages"])
    return min(found, key=lambda messages: (len(messages) < turns, abs(len(messages) - turns)))


def coloured(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> HTML:
    """A conversation token by token, supervised ones in green; hover for the id. Texts are escaped."""
    from IPython.display import HTML

    encoding = encode(tokenizer, messages)
    spans = []
    for number, (token, supervised) in enumerate(zip(encoding.input_ids, encoding.supervised, strict=True)):
        text = html.escape(tokenizer.decode([token])).replace("\n", "⏎\n")
        shade = ("#b8e6d0", "#9bd9bd") if supervised else ("#eeeeee", "#dddddd")
        spans.append(f'<span style="background:{shade[number % 2]};color:#222" title="{token}">{text}</span>')
    return HTML(f'<pre style="white-space:pre-wrap;line-height:1.6">{"".join(spans)}</pre>')
