"""How figures and tables look, are saved, and draw a training run: without pyplot, so that nothing global changes.

A light and a dark theme; the first two colours (Okabe & Ito 2008) are told apart by colour-blind eyes, and without
colour by line style and marker.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from IPython.display import HTML, Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from nbutils.core.files import replaced
from nbutils.core.history import History, Row, Series, thinned, trend
from nbutils.core.text import counted
from nbutils.core.training_log import ACCURACY, LOSS, MFU, SPEED, Metric

WIDTH = 8.0
"""Inches; at DPI this is 800 pixels, the width of a model card."""
DPI = 100
FILE_DPI = 160
"""Pixels per inch of the PNG files: twice a model card's width would be 200, at double the time and size."""

REDRAW = 5.0

LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "X")


@dataclass(frozen=True)
class Theme:
    """Colours of a figure: page, text, grid, and those of curves."""

    page: str
    ink: str
    faint: str
    curves: tuple[str, ...]

    @property
    def first(self) -> str:
        """The colour of training."""
        return self.curves[0]

    @property
    def second(self) -> str:
        """The colour of evaluation."""
        return self.curves[1]


THEMES = {
    "light": Theme("#ffffff", "#1f2328", "#d0d7de", ("#0072b2", "#c04f00", "#00825c", "#9a4f7f", "#8a6d00", "#444444")),
    "dark": Theme("#0d1117", "#e6edf3", "#30363d", ("#56b4e9", "#f0a030", "#2fc79a", "#e08fc0", "#f0e442", "#bbbbbb")),
}


def new_figure(
    rows: int, columns: int, *, theme: str, height: float, width: float = WIDTH, sharex: bool = False
) -> tuple[Figure, list[Axes]]:
    """An empty figure in a theme and its axes, row by row; sizes in inches."""
    colours = THEMES[theme]
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=colours.page)
    # Fixed margins in inches: fitting them would draw each figure twice. The right one holds the final values.
    left, right, bottom, top = 0.66, 0.62, 0.52, 0.36
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex).ravel().tolist()
    panel = (width - (left + right) * columns) / columns
    figure.subplots_adjust(
        left=left / width, right=1 - right / width, bottom=bottom / height, top=1 - top / height,
        wspace=(left + right) / panel, hspace=0.25 if rows > 1 else None,
    )  # fmt: skip
    for ax in axes:
        ax.set(facecolor=colours.page, axisbelow=True)
        ax.tick_params(which="both", colors=colours.ink, labelsize=8, length=3)
        ax.xaxis.label.set_color(colours.ink)
        ax.yaxis.label.set_color(colours.ink)
        ax.grid(True, color=colours.faint, linewidth=0.6)
        ax.spines[:].set_color(colours.faint)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def caption(axes: Axes, theme: str, title: str, x: str = "") -> None:
    """Writes the title of a panel and the name of its x axis."""
    axes.set_title(title, loc="left", fontsize=10, color=THEMES[theme].ink)
    axes.set_xlabel(x, fontsize=9)


def add_legend(target: Axes | Figure, theme: str, **options: Any) -> None:
    """Adds a legend without a frame."""
    target.legend(fontsize=8, frameon=False, labelcolor=THEMES[theme].ink, **options)


def write_values(axes: Axes, metric: Metric, ends: Sequence[tuple[float, str]]) -> None:
    """Writes the y axis as the metric's values are written, and behind it the lines' final values in their colours.

    A final value is moved upwards where it would overlap another.
    """
    if metric.is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))  # as many decimals as the axis needs
    elif "," in metric.form:
        axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.margins(y=0.08)
    low, high = axes.get_ylim()
    gap = 13.0 / axes.get_window_extent().height * (high - low)  # 13 pixels: one line of the label's text
    height = -math.inf
    for value, colour in sorted(ends):
        height = max(value, height + gap)
        axes.annotate(metric.form.format(value), (1.0, height), xycoords=("axes fraction", "data"),
                      xytext=(4, 0), textcoords="offset points", va="center", fontsize=9, fontweight="bold",
                      color=colour, annotation_clip=False)  # fmt: skip


def save(draw: Callable[[str], Figure], folder: Path, name: str) -> Image:
    """Writes a figure as PNG and SVG, in the light theme and, with `-dark` behind the name, in the dark one.

    Returns the light one, to be shown.
    """
    for theme in THEMES:
        figure = draw(theme)
        stem = name if theme == "light" else f"{name}-{theme}"
        for form in ("png", "svg"):
            with replaced(folder / f"{stem}.{form}") as partial:
                partial.write_bytes(file_of(figure, form, FILE_DPI))
    return Image(filename=str(folder / f"{name}.png"), width=round(WIDTH * DPI))


def file_of(figure: Figure, form: str, dpi: int = DPI) -> bytes:
    """The figure as a `png` or `svg` file: the same bytes for the same figure."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "smallchat", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=form, dpi=dpi, metadata={"Date": None})
    return buffer.getvalue()


def whole_table(frame: pd.DataFrame, **options: Any) -> HTML:
    """A table with whole texts, which pandas would cut off at 50 characters; escaped, but for `escape=False`."""
    with pd.option_context("display.max_colwidth", None):
        return HTML(frame.to_html(justify="left", **options))


class Line(NamedTuple):
    """A line or points of a metric: a key of LOOKS, the place of its colour, and what is drawn."""

    label: str
    look: str
    colour: int
    series: Series


LOOKS: dict[str, dict[str, Any]] = {
    "raw": {"marker": ".", "linestyle": "none", "alpha": 0.4, "markeredgewidth": 0, "zorder": 2},
    "trained": {"linewidth": 1.8, "zorder": 3},
    "alike": {"marker": "D", "linestyle": "none", "fillstyle": "none", "markersize": 5, "zorder": 4},
    "evaluation": {"marker": "o", "linestyle": "--", "linewidth": 1.0, "markersize": 4.5, "zorder": 4},
}


def lines_of(history: History, metric: Metric) -> list[Line]:
    """What a figure shows of a metric: raw points and the smoothed line of training, and the evaluations.

    Where training counts all tokens and evaluation the assistant's alone, the labels say so. A line that breaks off
    before the end of the run has not ended, nor have raw points: their last one is no final value.
    """
    train, evals = history.series(metric.column), history.eval_series(metric.evaluation)
    alike = history.eval_series(metric.evaluation_alike)
    apart = bool(metric.evaluation) and history.counts_all_tokens
    smooth = metric.smooth and len(train) >= 5
    trained = f"training{' (all tokens)' * apart}{', smoothed' * smooth}"
    lines = [
        *[Line("as logged", "raw", 0, replace(train, ended=False))] * smooth,
        Line(trained, "trained", 0, trend(train) if smooth else train),
        *[Line("evaluation (all tokens)", "alike", 2, alike)] * apart,
        Line("evaluation" + " (assistant's tokens)" * apart, "evaluation", 1, evals),
    ]
    return [line for line in lines if len(line.series)]


def events_of(history: History, metric: Metric) -> dict[str, list[int]]:
    """On the loss, steps by what to call them: skipped in fp16, values that were no number, the final model's."""
    if metric is not LOSS:
        return {}
    broken, skipped = history.series(LOSS.column).broken, history.series("skipped_steps")
    events = {
        f"fp16 steps skipped ({int(skipped.last or 0)})": skipped.steps[np.diff(skipped.values, prepend=0.0) > 0],
        f"not a number ({counted(len(broken), 'row')})": broken,
        f"final model (step {history.chosen})": np.array([history.earlier_model] if history.earlier_model else []),
    }
    return {label: steps.astype(int).tolist() for label, steps in events.items()}


def training_figure(history: History, steps: int | None = None) -> Figure:
    """Loss and token accuracy of training and evaluation side by side, over optimizer steps, and the speed by now.

    `steps` is the planned number of steps, which the axes then span.
    """
    figure, panels = new_figure(1, 2, theme="light", height=WIDTH * 0.36)
    for axes, metric in zip(panels, (LOSS, ACCURACY), strict=True):
        draw_metric(axes, history, metric)
        if steps:
            axes.set_xlim(0, max(steps, history.last_step))
    ends = [(metric, history.series(metric.column).last) for metric in (SPEED, MFU)]
    speed = ", ".join(metric.form_with_unit.format(end) for metric, end in ends if end)
    figure.text(0.5, 0.01, speed, ha="center", fontsize=8, color=THEMES["light"].ink)
    return figure


def draw_metric(axes: Axes, history: History, metric: Metric, *, theme: str = "light") -> None:
    """Draws a metric and its events, and writes final values at the lines' ends."""
    colours = THEMES[theme]
    lines = lines_of(history, metric)
    for line in lines:
        few = thinned(line.series)
        dots = {"marker": "."} if len(few) < 5 else {}  # a line of one point would not be seen
        axes.plot(few.steps, few.values, label=line.label, color=colours.curves[line.colour], clip_on=False,
                  **dots | LOOKS[line.look])  # fmt: skip
    if history.resumes:
        axes.vlines(history.resumes, 0, 1, transform=axes.get_xaxis_transform(), color=colours.ink, linewidth=0.7,
                    linestyle=":", alpha=0.7, zorder=1, label=f"resumed ({len(history.resumes)}×)")  # fmt: skip
    inks = (colours.second, colours.ink, colours.ink)
    for (label, steps), marker, height, colour in zip(
        events_of(history, metric).items(), "|x^", (0.02, 0.06, 0.02), inks, strict=False
    ):
        if steps:  # at a share of the axes' height
            some = steps[:: -(-len(steps) // 200)]
            axes.plot(some, [height] * len(some), marker, transform=axes.get_xaxis_transform(), label=label, zorder=3,
                      color=colour)  # fmt: skip
    caption(axes, theme, metric.title, "optimizer steps")
    if history.last_step:
        axes.set_xlim(0, history.last_step)
    ends = [(line.series.values[-1], colours.curves[line.colour]) for line in lines if line.series.ended]
    write_values(axes, metric, ends)
    if lines:
        add_legend(axes, theme, loc="best")


class LiveFigure:
    """The training figure in a notebook, redrawn in place during a run, at most every REDRAW seconds."""

    steps: int | None = None
    """The planned optimizer steps, once they are known."""
    _handle: Any = None
    _drawn_at = -math.inf

    def update(self, rows: Sequence[Row], *, now: bool = False) -> None:
        """Redraws with all rows so far, unless it was done just before; `now` draws in any case."""
        if not now and time.monotonic() - self._drawn_at < REDRAW:
            return
        image = Image(data=file_of(training_figure(History.of(rows), self.steps), "png"), format="png")
        if self._handle is None:
            self._handle = display(image, display_id=True)
        else:
            self._handle.update(image)
        self._drawn_at = time.monotonic()
