"""The figures of a run and of compared runs, and the files that they become in light and dark."""

from __future__ import annotations

from itertools import cycle, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nbutils.core.charts import (
    LINE_STYLES,
    MARKERS,
    THEMES,
    WIDTH,
    add_legend,
    caption,
    draw_metric,
    new_figure,
    save,
    write_values,
)  # fmt: skip
from nbutils.core.history import History, thinned, trend
from nbutils.core.text import duration
from nbutils.core.training_log import ACCURACY, LOSS, METRICS, SECONDS, Metric
from nbutils.metrics.compare import Compared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = {name: tuple(metrics) for name, metrics in groupby(METRICS, key=lambda metric: metric.figure)}
"""Figures of a run: file name and the metrics that it shows, one above the other."""

OVER = {"step": "optimizer steps", "total_tokens": "tokens", "elapsed": "seconds of training"}
"""What compared curves are drawn over: the column of the training rows, and its name on the axis."""

COMPARED = {"compare_loss": LOSS, "compare_accuracy": ACCURACY}
"""Figures of a comparison: file name and metric."""


def save_figures(history: History, folder: Path) -> dict[str, str]:
    """Writes every figure that the history has data for, as PNG and SVG, light and dark; returns name → caption."""
    written = {}
    for name, metrics in FIGURES.items():
        if any(history.holds(metric) for metric in metrics):
            save(lambda theme, shown=metrics: metric_figure(history, *shown, theme=theme), folder, name)  # type: ignore[misc]
            words = ("training and evaluation " * bool(metric.evaluation) + metric.label for metric in metrics)
            written[name] = " and ".join(words).capitalize()
    if any(history.seconds.values()):
        save(lambda theme: _seconds(history, theme), folder, "seconds")
        written["seconds"] = "Where the time went"
    return written


def metric_figure(history: History, *metrics: Metric, theme: str = "light") -> Figure:
    """Metrics over optimizer steps, one above the other."""
    figure, panels = new_figure(len(metrics), 1, theme=theme, height=1.8 + 1.4 * len(metrics), sharex=True)
    for place, (axes, metric) in enumerate(zip(panels, metrics, strict=True), start=1):
        draw_metric(axes, history, metric, theme=theme)
        values = history.series(metric.column).finite.values
        if metric.from_zero:  # with room above what is nearly constant
            axes.set_ylim(0, axes.get_ylim()[1] * 1.1 or 1)
        elif len(values) and values.min() > 0 and values.max() > 50 * np.median(values):  # else spikes flatten all else
            axes.set_yscale("log")
        if place < len(panels):
            axes.set_xlabel("")
        legend = axes.get_legend()
        if place > 1 and legend:
            legend.remove()  # the panel above explains the same lines
    return figure


def comparison_figure(runs: list[Compared], metric: Metric, *, theme: str = "light") -> Figure:
    """Evaluation (markers) and training curves of all runs, by steps, tokens and time side by side, over one legend.

    Runs differ by colour, line style and marker. At the lines' ends stand the final values of the evaluations; those of
    training where no run has any.
    """
    from matplotlib.ticker import EngFormatter

    height = 3.7
    figure, panels = new_figure(1, 3, theme=theme, width=WIDTH * 1.25, height=height)
    figure.subplots_adjust(bottom=(0.55 + 0.22 * -(-(len(runs) + 2) // 3)) / height)
    for axes, (x, label) in zip(panels, OVER.items(), strict=True):
        trained: list[tuple[float, str]] = []
        evaluated: list[tuple[float, str]] = []
        styles = cycle(THEMES[theme].curves), cycle(LINE_STYLES), cycle(MARKERS)
        for run, colour, style, marker in zip(runs, *styles, strict=False):
            train, measured = run.history.series(metric.column, x=x), run.history.eval_series(metric.evaluation, x=x)
            line, evals = trend(train), thinned(measured.finite, 60)
            look: dict[str, Any] = {"color": colour, "markersize": 4.5}
            axes.plot([], [], label=run.name, linestyle=style, marker=marker, **look)  # the legend's
            axes.plot(line.steps, line.values, linestyle=style, linewidth=1.2, alpha=0.8, **look)
            axes.plot(evals.steps, evals.values, marker, markeredgecolor=THEMES[theme].page, **look)
            trained += [(line.values[-1], colour)] if train.ends_finite else []
            evaluated += [(evals.values[-1], colour)] if measured.ends_finite else []
        caption(axes, theme, metric.title if axes is panels[0] else "", label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        write_values(axes, metric, evaluated or trained)
    for label, style, marker in (("lines: training, smoothed", "-", ""), ("markers: evaluation", "", "o")):
        panels[0].plot([], [], label=label, color=THEMES[theme].ink, ls=style, marker=marker, markersize=4.5)
    entries, _ = panels[0].get_legend_handles_labels()
    add_legend(figure, theme, handles=entries, loc="lower left", ncols=3, bbox_to_anchor=(0.05, 0.0))
    return figure


def save_comparisons(runs: list[Compared], folder: Path) -> None:
    """Writes the figures of compared runs (`COMPARED`); none where there are no runs."""
    for name, metric in COMPARED.items() if runs else ():
        save(lambda theme, shown=metric: comparison_figure(runs, shown, theme=theme), folder, name)  # type: ignore[misc]


def _seconds(history: History, theme: str) -> Figure:
    """One bar for each part of the time, longest first, with seconds and share written beside it."""
    parts = sorted(history.seconds.items(), key=lambda part: part[1])
    spent = {SECONDS.get(part, "everything else"): seconds for part, seconds in parts if seconds > 0}
    total = sum(spent.values())
    figure, (axes,) = new_figure(1, 1, theme=theme, height=0.9 + 0.34 * len(spent))
    figure.subplots_adjust(left=0.18)
    bars = axes.barh(list(spent), list(spent.values()), color=THEMES[theme].first, height=0.62)
    words = [f"{duration(seconds)} · {seconds / total:.0%}" for seconds in spent.values()]
    axes.bar_label(bars, words, padding=4, fontsize=8, color=THEMES[theme].ink)
    axes.set_xlim(0, max(spent.values()) * 1.16)
    axes.grid(False, axis="y")
    caption(axes, theme, f"Where {duration(total)} of training went", "seconds")
    return figure
