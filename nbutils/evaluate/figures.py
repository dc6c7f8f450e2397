"""The figures of an evaluation: scores with intervals, and the context curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nbutils.core.charts import LINE_STYLES, THEMES, add_legend, caption, new_figure
from nbutils.core.text import with_interval
from nbutils.evaluate.report import NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXTENSION_NAMES = {"none": "no extension", "dynamic": "dynamic NTK", "yarn": "YaRN"}
WIDE_RANGE = 20.0
"""Ratio of largest to smallest value from which a panel's axis is logarithmic."""


def scores_figure(scores: Sequence[Mapping[str, Any]], theme: str = "light") -> Figure:
    """A panel for each metric: a point and its 95 % interval for each model, with the value beside it."""
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for score in scores:
        if "low" in score and "part" not in score:
            better = "higher" if score["higher_is_better"] else "lower"
            panels.setdefault(f"{score['task']} · {score['metric']} ({better} is better)", []).append(score)
    colours = THEMES[theme]
    height = 0.62 + len(panels) * (0.55 + 0.28 * max(map(len, panels.values()))) + 0.3 * (len(panels) - 1)
    figure, axes = new_figure(len(panels), 1, theme=theme, height=height)
    figure.subplots_adjust(left=0.2, right=0.76, hspace=0.95, top=1 - 0.36 / height, bottom=0.4 / height)
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        for place, row in enumerate(rows):
            colour, marker = (colours.first, "o") if row["model"] == "run" else (colours.second, "s")
            ax.plot([row["low"], row["high"]], [place, place], "-", color=colour, linewidth=2, solid_capstyle="butt")
            ax.plot(row["value"], place, marker, color=colour, markersize=6)
            text = with_interval(row["value"], row["low"], row["high"])
            ax.annotate(text, (1.015, place), xycoords=("axes fraction", "data"), va="center", fontsize=8,
                        color=colours.ink, annotation_clip=False)  # fmt: skip
        ax.set_yticks(range(len(rows)), [NAMES.get(row["model"], row["model"]) for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        values = [abs(row["value"]) for row in rows]
        if min(values) > 0 and max(values) / min(values) > WIDE_RANGE:
            ax.set_xscale("log")
        caption(ax, theme, title)
    return figure


def context_figure(curve: Mapping[str, Any], theme: str = "light") -> Figure:
    """Loss by position without extension, and what each extension adds to it or takes off, with the trained length.

    The conversations are the same for all: in the difference, what makes a passage hard cancels out.
    """
    figure, (left, right) = new_figure(1, 2, theme=theme, height=3.2)
    plain = curve["curves"]["none"]
    for index, (name, values) in enumerate(curve["curves"].items()):
        ax, base = (left, [0.0] * len(plain)) if name == "none" else (right, plain)
        points = [(p, v - b) for p, v, b in zip(curve["positions"], values, base, strict=True) if v is not None]
        ax.plot(*zip(*points, strict=True), LINE_STYLES[index % len(LINE_STYLES)], linewidth=1.8,
                color=THEMES[theme].curves[index], label=EXTENSION_NAMES.get(name, name))  # fmt: skip
    right.axhline(0, color=THEMES[theme].curves[0], linewidth=1)
    for ax, title in ((left, "Loss without extension, nats per token"), (right, "Difference with an extension")):
        ax.axvline(curve["trained_length"], color=THEMES[theme].ink, linewidth=0.8, linestyle=":")
        ax.annotate("trained length ", (curve["trained_length"], 0.02), xycoords=("data", "axes fraction"), ha="right",
                    fontsize=8, color=THEMES[theme].ink)  # fmt: skip
        caption(ax, theme, title, "position in the conversation, tokens")
        ax.set_xlim(0, 2 * curve["trained_length"])
        ax.margins(y=0.15)
    add_legend(right, theme, loc="best")
    return figure
