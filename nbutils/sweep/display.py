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
from nbutils.sweep.verdict import ALIKE, BEST, DIVERGED, Row, Verdict, label, text

MARKS = {BEST: ("*", 22), ALIKE: ("o", 12)}
"""Outlines and their sizes; the dots of the seeds show through them."""
WIDE = 4
"""Times the smallest number that the largest is at least, for a log axis."""
TICKS = 8
"""Numbers up to which each has its own mark on the axis."""


def table(verdict: Verdict) -> pd.DataFrame:
    """A row of text for each candidate from the best on: its loss, by seed too, and how far it is above the best."""
    rows = []
    for row in verdict.rows:
        above = with_interval(*row.above, "+") if row.above else ""
        rows.append(
            {name: text(value) for name, value in row.values.items()}
            | {"loss, nats per token": _loss(row.loss)}
            | {f"seed {seed}": _loss(loss) for seed, loss in row.losses.items()}
            | {"above the best [95 %]": above, "": row.word}
        )
    return pd.DataFrame(rows)


def _loss(loss: float | None) -> str:
    return DIVERGED if loss is None else number(loss)


def figure(verdict: Verdict, theme: str = "light") -> Figure:
    """Loss over the parameter with the most values: a line for each combination of the others' values.

    Lines go through the means, and each seed is a dot. Marked are the best, what cannot be told apart from it, and what
    diverged.
    """
    x, *others = sorted(verdict.rows[0].values, key=lambda name: -len({str(row.values[name]) for row in verdict.rows}))
    drawn, (ax,) = new_figure(1, 1, theme=theme, height=4.5)
    drawn.set_layout_engine("constrained")
    places = _axis(ax, [row.values[x] for row in verdict.rows])
    lines: dict[str, list[tuple[float, Row]]] = {}
    for row in verdict.rows:
        line = lines.setdefault(label({name: row.values[name] for name in others}) or "mean", [])
        line.append((places[text(row.values[x])], row))
    ink, curves = THEMES[theme].ink, cycle(THEMES[theme].curves)
    for (name, line), colour, style in zip(sorted(lines.items()), curves, cycle(LINE_STYLES), strict=False):
        means = sorted((place, row.loss or math.nan) for place, row in line)
        ax.plot(*zip(*means, strict=True), style, color=colour, label=name)
        for place, row in line:
            dots = [loss or math.nan for loss in row.losses.values()]
            ax.plot([place] * len(dots), dots, ".", color=colour, label="a seed")
            if row.loss is None:
                ax.plot(place, 0.95, "x", color=ink, transform=ax.get_xaxis_transform(), label=DIVERGED)
            elif row.word in MARKS:
                mark, size = MARKS[row.word]
                ax.plot(place, row.loss, mark, color=ink, fillstyle="none", markersize=size, label=row.word)
    caption(ax, theme, "Held-out loss, nats per token", x)
    handles, names = ax.get_legend_handles_labels()
    legend = dict(zip(names, handles, strict=True))  # each once
    add_legend(drawn, theme, handles=[*legend.values()], labels=[*legend], loc="outside lower left", ncols=3)
    return drawn


def _axis(ax: Axes, values: Sequence[Any]) -> dict[str, float]:
    """Where each value stands: numbers in their size, on a log axis if they are far apart; others side by side."""
    texts = {text(value): value for value in values}
    ordered = all(isinstance(value, int | float) for value in values)
    places: dict[str, float] = texts if ordered else dict(zip(sorted(texts), count(), strict=False))
    if ordered and 0 < WIDE * min(values) <= max(values):
        ax.set_xscale("log")
    if len(places) <= TICKS or not ordered:
        width = max(6, min(24, 72 // len(places)))  # characters: beyond, they overlap or leave the page
        ax.set_xticks([*places.values()], [fill(name, width) for name in places])
        ax.xaxis.set_minor_locator(NullLocator())
    return places
