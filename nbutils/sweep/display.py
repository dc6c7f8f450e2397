"""What a sweep shows: the table of its candidates and the figure of their losses; no number is made here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count, cycle
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from nbutils.core.charts import LINE_STYLES, THEMES, add_legend, caption, new_figure
from nbutils.core.text import number, with_interval
from nbutils.sweep.verdict import Row, Verdict, label

TICKS = 8
"""Numbers up to which each has its own mark on the axis."""


def table(verdict: Verdict) -> pd.DataFrame:
    """A row of text for each candidate from the best on: its loss, by seed too, and how far it is above the best."""
    rows = []
    for row in verdict.rows:
        word = "worse" if row.worse else "best" if row.values == verdict.best else "not distinguishable"
        word = "unsettled" if (row.high or 0) < 0 else word
        apart = ""
        if word != "best" and row.loss is not None:
            apart = with_interval(row.difference or 0, row.low or 0, row.high or 0, "+")
        rows.append(
            {name: label(row.values, [name], {}) for name in verdict.swept}
            | {"loss, nats per token": _text(row.loss)}
            | {f"seed {seed}": _text(row.losses[seed]) if seed in row.losses else "" for seed in verdict.seeds}
            | {"above the best [95 %]": apart, "": word}
        )
    return pd.DataFrame(rows)


def _text(loss: float | None) -> str:
    return "diverged" if loss is None else number(loss)


def figure(verdict: Verdict, theme: str = "light") -> Figure:
    """Loss over the parameter with the most values: a line for each value of the next one, a panel for those of others.

    Lines go through the means, where values are numbers, and each seed is a dot. Marked are the best, what cannot be
    told apart from it, and what diverged.
    """
    x, *others = sorted(verdict.swept, key=lambda name: -len({str(row.values[name]) for row in verdict.rows}))
    panels = _groups(verdict.rows, others[1:])
    height = 1.0 + 3.0 * len(panels)
    drawn, axes = new_figure(len(panels), 1, theme=theme, height=height)
    drawn.subplots_adjust(bottom=1.0 / height, hspace=0.35)
    legend: dict[str, Any] = {}
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        places = _axis(ax, [row.values[x] for row in verdict.rows])
        look = cycle(THEMES[theme].curves), cycle(LINE_STYLES)
        for (name, line), colour, style in zip(_groups(rows, others[:1]).items(), *look, strict=False):
            points = sorted(((places[str(row.values[x])], row) for row in line), key=lambda point: point[0])
            whole = [(place, row.loss) for place, row in points if row.loss is not None] or [(math.nan, math.nan)]
            ordered = isinstance(line[0].values[x], int | float)
            ax.plot(*zip(*whole, strict=True), style if ordered else "_", color=colour, label=name or "mean")
            for place, row in points:
                _mark(ax, place, row, colour, verdict, theme)
        caption(ax, theme, "Held-out loss, nats per token" + f" · {title}" * bool(title), x)
        legend |= {text: handle for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    limits = [ax.get_ylim() for ax in axes]
    for ax in axes:
        ax.set_ylim(min(limits)[0], max(high for _, high in limits))
    add_legend(drawn, theme, handles=[*legend.values()], labels=[*legend], loc="lower left", ncols=5,
               bbox_to_anchor=(0.05, 0.0))  # fmt: skip
    return drawn


def _groups(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[Row]]:
    """Rows by what they have of some parameters."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: label(row.values, names)):
        groups.setdefault(label(row.values, names), []).append(row)
    return groups


def _axis(ax: Axes, values: Sequence[Any]) -> dict[str, float]:
    """Where each value stands: numbers in their size, on a log axis if they span a decade; others side by side."""
    texts = {str(value): value for value in values}
    ordered = all(isinstance(value, int | float) for value in values)
    places: dict[str, float] = texts if ordered else dict(zip(sorted(texts), count(), strict=False))
    if ordered and min(values) > 0 and max(values) >= 10 * min(values):
        ax.set_xscale("log")
    if len(places) <= TICKS or not ordered:
        width = max(6, min(24, 72 // len(places)))  # characters: beyond, they overlap or leave the page
        ax.set_xticks([*places.values()], [fill(label({"": texts[text]}, [""], {}), width) for text in places])
        ax.xaxis.set_minor_locator(NullLocator())
    return places


def _mark(ax: Axes, place: float, row: Row, colour: str, verdict: Verdict, theme: str) -> None:
    """The seeds of a candidate as dots, and what is said of it."""
    ink = THEMES[theme].ink
    losses = [loss for loss in row.losses.values() if loss is not None]
    ax.plot([place] * len(losses), losses, ".", color=colour, label="a seed")
    if row.loss is None:
        ax.plot(place, 0.95, "x", color=ink, transform=ax.get_xaxis_transform(), label="diverged")
    elif row.values == verdict.best:
        ax.plot(place, row.loss, "*", color=ink, markersize=14, label="best")
    elif not row.worse:
        ax.plot(place, row.loss, "o", color=ink, markersize=12, fillstyle="none", label="not distinguishable from it")
