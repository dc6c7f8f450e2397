"""The loss and accuracy figure of a training run, and the one way in which all our curves are drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nbutils.core.canvas import THEMES, WIDTH, End, Theme, label_ends, new_figure, png
from nbutils.core.history import History, Row, Series, thinned, trend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "X")


@dataclass(frozen=True)
class Curve:
    """What a panel shows: the column of the training rows, that of the evaluation rows, and how to write values."""

    title: str
    train: str
    evaluation: str = ""
    form: str = "{:.2f}"
    smooth: bool = True
    like_training: str = ""
    """Column of the evaluation rows that counts the tokens which training counts, where that is all of them."""


LOSS = Curve("Loss, nats per supervised token", "loss", "eval_loss", like_training="eval_loss_all_tokens")
ACCURACY = Curve("Token accuracy, share of supervised tokens", "token_accuracy", "eval_token_accuracy", "{:.1%}")


def training_figure(
    rows: Iterable[Row] | History, *, theme: str = "light", steps: int | None = None, width: float = WIDTH
) -> Figure:
    """Loss and token accuracy of training and evaluation side by side, over optimizer steps.

    `rows` are those of `metrics.jsonl`, so far as they are there: an empty list gives empty axes. `steps` is the
    planned number of steps, which the axes then span; `width` is in inches.
    """
    history = History.of(rows)
    figure, panels = new_figure(1, 2, theme=theme, width=width, height=width * 0.36)
    for axes, curve in zip(panels, (LOSS, ACCURACY), strict=True):
        draw_curve(axes, history, curve, theme=theme)
        if steps:
            axes.set_xlim(0, max(steps, history.last_step))
    return figure


def curve_figure(
    rows: Iterable[Row] | History, curve: Curve, *, theme: str = "light", width: float = WIDTH, height: float = 3.2
) -> Figure:
    """One quantity over optimizer steps; sizes in inches."""
    figure, (axes,) = new_figure(1, 1, theme=theme, width=width, height=height)
    draw_curve(axes, History.of(rows), curve, theme=theme)
    return figure


def draw_curve(axes: Axes, history: History, curve: Curve, *, theme: str = "light") -> None:
    """Draws a curve: faint raw points, the smoothed line, evaluations as markers, final values at the lines' ends.

    Where training counts all tokens and evaluation the assistant's alone, the legend says so.
    """
    from matplotlib.ticker import PercentFormatter

    colours = THEMES[theme]
    train, measured = history.series(curve.train), history.eval_series(curve.evaluation)
    evals = measured.finite
    apart = bool(curve.evaluation) and history.counts_all_tokens
    ends: list[End] = []
    if len(train.finite):
        line = _draw_line(axes, train, curve, colours, " (all tokens)" if apart else "")
        if train.ends_finite:  # else the line breaks off before the end of the run: its last point is no final value
            ends.append(End(line.values[-1], colours.first))
    like = history.eval_series(curve.like_training)
    if apart and curve.like_training and len(same := like.finite):
        axes.plot(same.steps, same.values, "D", color=colours.first, markersize=5, zorder=4, clip_on=False,
                  markerfacecolor=colours.page, label="evaluation (all tokens)")  # fmt: skip
        if like.ends_finite:
            ends.append(End(same.values[-1], colours.first, "◇"))
    if len(evals):
        few = thinned(evals, 60)
        axes.plot(evals.steps, evals.values, "--", color=colours.second, linewidth=1.0, zorder=3)
        axes.plot(few.steps, few.values, "o", color=colours.second, markersize=4.5, zorder=4, clip_on=False,
                  markeredgecolor=colours.page, markeredgewidth=0.8,
                  label="evaluation (assistant's tokens)" if apart else "evaluation")  # fmt: skip
        if measured.ends_finite:
            ends.append(End(evals.values[-1], colours.second))
    _mark_events(axes, history, curve, colours)
    axes.set_title(curve.title, loc="left", fontsize=10, color=colours.ink)
    axes.set_xlabel("optimizer steps", fontsize=9)
    if history.last_step:
        axes.set_xlim(0, history.last_step)
    label_ends(axes, ends, curve.form, history.last_step or None)
    if curve.form.endswith("%}"):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))  # as many decimals as the axis needs
    if len(train.finite) or len(evals):
        if len(axes.get_legend_handles_labels()[1]) > 1 or curve.smooth:
            axes.legend(fontsize=8, frameon=False, labelcolor=colours.ink, loc="best")
    else:
        axes.text(0.5, 0.5, "nothing logged yet", ha="center", va="center", transform=axes.transAxes, color=colours.ink)


def draw_runs(
    axes: Axes, runs: Mapping[str, History], curve: Curve, *, x: str = "step", theme: str = "light"
) -> tuple[list[Line2D], list[End]]:
    """Draws one curve of several runs over one another: lines smoothed, evaluations as markers.

    `x` is the column of the training rows to draw over: `step`, `total_tokens` or `elapsed`. Runs differ by colour,
    line style and marker. Returns what a legend needs (an entry for each run, one for lines and one for markers) and
    the final values, for `label_ends` to write once the axes have their size: those of the evaluations; those of
    training where no run has any.
    """
    from matplotlib.lines import Line2D

    colours = THEMES[theme]
    trained: list[End] = []
    evaluated: list[End] = []
    entries: list[Line2D] = []
    kinds = {"lines: training" + (", smoothed" if curve.smooth else ""): False, "markers: evaluation": False}
    for index, (name, history) in enumerate(runs.items()):
        colour, style, marker = (
            choices[index % len(choices)] for choices in (colours.curves, LINE_STYLES, MARKERS)
        )  # fmt: skip
        train, measured = history.series(curve.train, x=x), history.eval_series(curve.evaluation, x=x)
        evals = measured.finite
        line = trend(train) if curve.smooth else thinned(train.finite)
        if len(line):
            axes.plot(line.steps, line.values, color=colour, linestyle=style, linewidth=1.2, alpha=0.8)
        if len(evals):
            few = thinned(evals, 60)
            axes.plot(few.steps, few.values, marker, color=colour, markersize=4.5, markeredgecolor=colours.page)
        trained += [End(line.values[-1], colour)] if train.ends_finite else []
        evaluated += [End(evals.values[-1], colour)] if measured.ends_finite else []
        entry = Line2D([], [], color=colour, markersize=4.5, label=name)
        entry.set(linestyle=style if len(line) else "none", marker=marker if len(evals) else "none")
        entries.append(entry)
        kinds = {kind: seen or bool(len(s)) for (kind, seen), s in zip(kinds.items(), (line, evals), strict=True)}
    for (kind, seen), (style, marker) in zip(kinds.items(), (("-", "none"), ("none", "o")), strict=True):
        if seen:
            entries.append(Line2D([], [], color=colours.ink, markersize=4.5, label=kind))
            entries[-1].set(linestyle=style, marker=marker)
    return entries, evaluated if kinds["markers: evaluation"] else trained


class LiveFigure:
    """The training figure in a notebook, redrawn in place while a run goes on."""

    def __init__(
        self,
        *,
        steps: int | None = None,
        theme: str = "light",
        every: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`steps` planned optimizer steps; `every` is the least number of seconds between two drawings."""
        self.steps, self.theme, self.every, self.clock = steps, theme, every, clock
        self._handle: Any = None
        self._drawn_at: float | None = None

    def update(self, rows: Sequence[Row], *, now: bool = False) -> bool:
        """Redraws with all rows so far, unless that was done less than `every` seconds ago; `now` draws in any case.

        Returns whether it drew.
        """
        if not now and self._drawn_at is not None and self.clock() - self._drawn_at < self.every:
            return False
        from IPython.display import Image, display

        image = Image(data=png(training_figure(rows, theme=self.theme, steps=self.steps)), format="png")
        if self._handle is None:
            self._handle = display(image, display_id=True)
        else:
            self._handle.update(image)
        self._drawn_at = self.clock()
        return True


def _draw_line(axes: Axes, train: Series, curve: Curve, colours: Theme, counted: str) -> Series:
    """Raw points and smoothed line of the training rows; returns the line as drawn."""
    raw = thinned(train.finite)
    if not curve.smooth or len(train.finite) < 5:
        axes.plot(raw.steps, raw.values, "-", color=colours.first, linewidth=1.6, label=f"training{counted}", zorder=3,
                  marker="." if len(raw) < 5 else None)  # fmt: skip
        return raw
    line = trend(train)
    size = 6.0 if len(raw) < 100 else 3.5
    axes.plot(raw.steps, raw.values, ".", color=colours.first, alpha=0.4, markersize=size, markeredgewidth=0, zorder=2,
              clip_on=False, label="as logged")  # fmt: skip
    label = f"training{counted}, smoothed"
    axes.plot(line.steps, line.values, "-", color=colours.first, linewidth=1.8, label=label, zorder=3)
    return line


def _mark_events(axes: Axes, history: History, curve: Curve, colours: Theme) -> None:
    """Resume points as thin lines; on the loss also skipped fp16 steps and values that are no number."""
    for n, step in enumerate(history.resumes):
        label = f"resumed ({len(history.resumes)}×)" if n == 0 else None
        axes.axvline(step, color=colours.ink, linewidth=0.7, linestyle=":", alpha=0.7, label=label, zorder=1)
    if curve.train != "loss":
        return
    base = axes.get_xaxis_transform()  # x in steps, y as a share of the axes' height
    skipped = history.skipped_at()
    if skipped:
        count = int(history.series("skipped_steps").last or 0)
        axes.plot(skipped, [0.02] * len(skipped), "|", transform=base, color=colours.second, markersize=9,
                  label=f"fp16 steps skipped ({count})", zorder=3)  # fmt: skip
    loss = history.series("loss")
    broken = loss.steps[~np.isfinite(loss.values)]
    if len(broken):
        shown_steps = broken[:: max(1, len(broken) // 200)]
        axes.plot(shown_steps, [0.06] * len(shown_steps), "x", transform=base, color=colours.ink, markersize=5,
                  label=f"not a number ({len(broken)} row{'s' if len(broken) > 1 else ''})", zorder=3)  # fmt: skip
