"""What notebook 01 shows: tables, figures and one conversation. Nothing here changes what the stage makes."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from IPython.display import HTML, Image

from nbutils.core.charts import THEMES, add_legend, new_figure, save, whole_table
from nbutils.core.files import Json
from nbutils.data.fates import KEPT, NEAR_DUPLICATE, REASONS
from nbutils.data.row_batches import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LOOKED_AT = 200
"""Conversations among which one is picked to be shown."""
PERCENT = "{:.1%}".format


def sources_table(sources: Sequence[Source]) -> pd.DataFrame:
    """Each dataset with the shape that was found."""
    rows = {
        source.label: {
            "shape": source.shape.name,
            "columns": ", ".join(source.columns),
            "rows": source.rows or "not known yet",
            "share taken": PERCENT(source.spec.fraction),
            "revision": source.revision[:12],
            "files taken": ", ".join(source.files),
        }
        for source in sources
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def fates_table(summary: Json) -> HTML:
    """Rows and tokens read by fate, in the order in which reasons are looked for, with what each means.

    Rows that a `fraction` left out have no fate; they have a line of their own, outside the shares.
    """
    frame = pd.DataFrame.from_dict(summary["fates"], orient="index").rename(columns={"tokens": "tokens read"})
    frame["share of rows"] = (frame["rows"] / summary["rows"]).map(PERCENT)
    frame["meaning"] = frame.index.map(REASONS.get).fillna("goes into the training or the evaluation set")
    if summary["rows_not_taken"]:
        frame.loc["not taken"] = [summary["rows_not_taken"], 0, "–", "left out by the fractions in `datasets`"]
    return whole_table(frame, formatters=dict.fromkeys(("rows", "tokens read"), "{:,}".format))


def contamination_line(summary: Json) -> str:
    """What was looked for of the evaluation tasks, and how much of it can't be found."""
    found = summary["contamination"]
    if found is None:
        return "Contamination was not looked for: contamination_tasks names no evaluation task."
    return (
        f"Contamination was looked for with {', '.join(found['tasks'])}: {found['items']:,} items, "
        f"{found['items_too_short']:,} too short to be found (fewer than {found['words']} words)."
    )


def beside_line(summary: Json) -> str:
    """What the rows held beside the texts that are learnt: marked messages, common openings, keys not read."""
    marked = sum(summary[side]["context_turns"] for side in ("train", "eval"))
    found = [f"{marked:,} messages are marked not to be learnt: they are read as context."]
    if shared := summary["openings"]:
        rows = f"{shared[0]['rows']:,} rows on the {shared[0]['side']} side"
        found.append(
            f"{len(shared)} openings (first exchanges) begin more than 1 % of the conversations each; each is on one "
            f"side as a whole; the commonest, first in row {shared[0]['index']} of {shared[0]['source']}, has {rows}."
        )
    keys = [f"{key} ({rows:,} rows)" for key, rows in summary["unread"].items()]
    return " ".join([*found, f"Not read, though they held text: {', '.join(keys) or 'no keys'}."])


def near_duplicates_line(summary: Json) -> str:
    """How many conversations repeat most of another one, and whether they are still there."""
    found = summary["near_duplicates"]
    if found is None:
        return "Near-duplicates were not looked for: near_duplicates is off."
    which = f"one in {found['one_window_in']}" if found["one_window_in"] > 1 else "all"
    return (
        f"Near-duplicates ({found['mode']}): {found['rows']:,} of {found['looked_at']:,} conversations share 80 % or "
        "more of their windows of 8 words with a held-out or an earlier one, or hold as many of a held-out one's; "
        f"{which} windows were looked at."
    )


def waterfall(summary: Json, folder: Path) -> Image:
    """What each reason takes away, in rows and in tokens read, down to what is kept; saved in `folder`."""
    counts = pd.DataFrame.from_dict(summary["fates"], orient="index")
    counts = counts[counts["rows"] > 0].loc[lambda found: [*found.index.drop(KEPT), KEPT]]

    def draw(theme: str) -> Figure:
        colours = THEMES[theme]
        figure, panels = new_figure(1, 2, theme=theme, height=1.3 + 0.3 * len(counts))
        figure.subplots_adjust(left=0.17)
        for axes, unit in zip(panels, counts, strict=True):
            widths = counts[unit]
            lefts = widths[::-1].cumsum()[::-1] - widths  # what is left behind each reason
            fills = [colours.first if fate == KEPT else colours.second for fate in counts.index]
            axes.bar_label(axes.barh(counts.index, widths, left=lefts, color=fills), fmt="{:,.0f}", fontsize=8,
                           padding=3, color=colours.ink)  # fmt: skip
            axes.invert_yaxis()
            axes.margins(x=0.2)
            axes.set_xlabel(f"{unit} read", fontsize=8)
        panels[1].set_yticklabels([])
        return figure

    return save(draw, folder, "fates")


def length_histogram(summary: Json, folder: Path) -> Image:
    """Conversations by length in tokens with the limit drawn in; saved in `folder`."""
    limit, lengths = summary["max_length"], summary["lengths"]
    heights, width = np.array(lengths["rows"]), lengths["bin_tokens"]
    lefts = width * np.arange(len(heights))
    beyond = f"max_length; beyond it {lengths['too_long']:,}, drawn from {lengths['counted']:,} of them"

    def draw(theme: str) -> Figure:
        colours = THEMES[theme]
        figure, (axes,) = new_figure(1, 1, theme=theme, height=3.2)
        fills = np.where(lefts < limit, colours.first, colours.second)
        axes.bar(lefts, heights, width * 0.95, align="edge", color=fills)
        axes.axvline(limit, color=colours.ink, linestyle="--", label=beyond)
        axes.set_xlabel("tokens of the conversation in ChatML (the last bar stands for all that is longer)", fontsize=8)
        axes.set_ylabel("conversations", fontsize=8)
        add_legend(axes, theme)
        return figure

    return save(draw, folder, "lengths")


def sets_table(summary: Json) -> pd.DataFrame:
    """What each set holds; `too_long` are over-long conversations of the evaluation side."""
    frame = pd.DataFrame.from_dict({name: summary[name] for name in ("train", "eval", "too_long")}, orient="index")
    frame["share supervised"] = (frame["supervised_tokens"] / frame["tokens"].clip(lower=1)).map(PERCENT)
    return frame


def limits_table(summary: Json) -> pd.DataFrame:
    """What other limits would drop; ≈ marks an estimate, where not every over-long conversation was counted."""
    about = "≈ " if summary["lengths"]["counted"] < summary["lengths"]["too_long"] else ""
    frame = pd.DataFrame(summary["limits"]).set_index("limit")
    return frame.map(lambda share: about + PERCENT(share)).add_suffix(" dropped")


def drops_table(samples: dict[str, list[Json]], summary: Json) -> HTML:
    """Dropped rows for each reason, and near-duplicates that are reported alone; texts are escaped."""
    if summary["near_duplicates"] and (reported := summary["near_duplicates"]["shown"]):
        samples = samples | {f"{NEAR_DUPLICATE} (reported, kept)": reported}
    rows = [{"reason": reason} | row for reason, found in samples.items() for row in found]
    frame = pd.DataFrame(rows, columns=["reason", "source", "index", "detail", "text"], dtype=str)
    frame = frame.map(lambda text: html.escape(text).replace("\n", "<br>"))
    return whole_table(frame, escape=False, index=False)


def example(folder: Path, turns: int = 4) -> Json:
    """A row of a set: of the first ones, the shortest that has `turns` turns or more (else the longest).

    Only the first LOOKED_AT are read, however long the set is.
    """
    from datasets import load_from_disk

    rows = list(load_from_disk(folder).take(LOOKED_AT))
    return min(rows, key=lambda row: (len(row["messages"]) < turns, abs(len(row["messages"]) - turns)))
