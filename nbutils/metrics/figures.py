"""The figures of a run: what each shows, and the files it becomes in light and dark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nbutils.core.canvas import THEMES, WIDTH, drop_legend, new_figure, png, svg
from nbutils.core.figures import ACCURACY, LOSS, Curve, curve_figure, draw_curve
from nbutils.core.files import replaced
from nbutils.core.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE_DPI = 160
"""Pixels per inch of the PNG files: twice a model card's width would be 200, at double the time and size."""

RATE = Curve("Learning rate", "learning_rate", form="{:.2g}", smooth=False)
NORM = Curve("Gradient norm before clipping", "grad_norm")
SPEED = Curve("Tokens per second", "tokens_per_second", form="{:,.0f}")
PADDING = Curve("Padding, share of all token positions", "padding", form="{:.2%}")
MEMORY = Curve("Peak memory, GiB", "peak_memory_gib", form="{:.2f}", smooth=False)

PARTS = {
    "data": "waiting for data",
    "forward_backward": "forward and backward",
    "optimizer": "optimizer step",
    "evaluation": "evaluation",
    "checkpoint": "checkpoints",
    "other": "everything else",
}
"""Parts of the training time in plain words."""


@dataclass(frozen=True)
class Plot:
    """One figure of a run: its file name, what it shows in a sentence, and how it is drawn."""

    name: str
    caption: str
    columns: tuple[str, ...]
    draw: Callable[[History, str], Figure]

    def has_data(self, history: History) -> bool:
        """Whether the run logged anything that this figure shows."""
        if self.columns == ("seconds",):
            return sum(history.seconds().values()) > 0
        both = (*(history.series(name) for name in self.columns), *(history.eval_series(name) for name in self.columns))
        return any(len(series.finite) for series in both)


def save_figures(history: History, folder: Path) -> dict[str, str]:
    """Writes every figure that the history has data for, as PNG and SVG, light and dark; returns name → caption.

    `loss.png`, `loss.svg` are the light ones, `loss-dark.png`, `loss-dark.svg` the dark ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for plot in PLOTS:
        if not plot.has_data(history):
            continue
        for theme in THEMES:
            figure = plot.draw(history, theme)
            name = plot.name if theme == "light" else f"{plot.name}-{theme}"
            for file, data in ((f"{name}.png", png(figure, FILE_DPI)), (f"{name}.svg", svg(figure))):
                with replaced(folder / file) as partial:
                    partial.write_bytes(data)
        written[plot.name] = plot.caption
    return written


def _curve(curve: Curve) -> Callable[[History, str], Figure]:
    return lambda history, theme: curve_figure(history, curve, theme=theme)


def _norm(history: History, theme: str) -> Figure:
    """The gradient norm, on a logarithmic scale where spikes would flatten everything else."""
    figure = curve_figure(history, NORM, theme=theme)
    values = history.series("grad_norm").finite.values
    positive = values[values > 0]
    if len(positive) and positive.max() > 50 * float(sorted(positive)[len(positive) // 2]):
        figure.axes[0].set_yscale("log")
    return figure


def _throughput(history: History, theme: str) -> Figure:
    figure, (speed, padding) = new_figure(2, 1, theme=theme, width=WIDTH, height=4.6, sharex=True)
    draw_curve(speed, history, SPEED, theme=theme)
    draw_curve(padding, history, PADDING, theme=theme)
    speed.set_xlabel("")
    drop_legend(padding)
    for axes in (speed, padding):
        _from_zero(axes)
    speed.yaxis.set_major_formatter("{x:,.0f}")
    return figure


def _memory(history: History, theme: str) -> Figure:
    figure = curve_figure(history, MEMORY, theme=theme, height=2.6)
    _from_zero(figure.axes[0])
    return figure


def _from_zero(axes: Axes) -> None:
    """An axis from zero, with room above what is nearly constant."""
    top = axes.get_ylim()[1]
    axes.set_ylim(0, top * 1.1 if top > 0 else 1)


def _seconds(history: History, theme: str) -> Figure:
    """One bar for each part of the time, longest first, with seconds and share written beside it."""
    parts = {part: seconds for part, seconds in history.seconds().items() if seconds > 0}
    ordered = sorted(parts, key=parts.__getitem__)
    total = sum(parts.values())
    figure, (axes,) = new_figure(1, 1, theme=theme, width=WIDTH, height=0.9 + 0.34 * len(parts))
    colours = THEMES[theme]
    axes.barh([PARTS[part] for part in ordered], [parts[part] for part in ordered], color=colours.first, height=0.62)
    for place, part in enumerate(ordered):
        axes.annotate(f"{duration(parts[part])} · {parts[part] / total:.0%}", (parts[part], place), xytext=(4, 0),
                      textcoords="offset points", va="center", fontsize=8, color=colours.ink)  # fmt: skip
    _bar_layout(axes, figure, max(parts.values()), total, colours.ink)
    return figure


def _bar_layout(axes: Axes, figure: Figure, longest: float, total: float, ink: str) -> None:
    axes.set_xlim(0, longest * 1.16)
    axes.set_title(f"Where {duration(total)} of training went", loc="left", fontsize=10, color=ink)
    axes.set_xlabel("seconds", fontsize=9)
    axes.grid(False, axis="y")
    figure.subplots_adjust(left=0.18)


def duration(seconds: float) -> str:
    """Seconds as a person says them: `42 s`, `3 min 20 s`, `5 h 02 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return (
        f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


PLOTS: tuple[Plot, ...] = (
    Plot("loss", "Training and evaluation loss", ("loss", "eval_loss"), _curve(LOSS)),
    Plot(
        "token_accuracy",
        "Training and evaluation token accuracy",
        ("token_accuracy", "eval_token_accuracy"),
        _curve(ACCURACY),
    ),
    Plot("learning_rate", "Learning rate", ("learning_rate",), _curve(RATE)),
    Plot("grad_norm", "Gradient norm", ("grad_norm",), _norm),
    Plot("throughput", "Tokens per second and share of padding", ("tokens_per_second",), _throughput),
    Plot("memory", "Peak memory", ("peak_memory_gib",), _memory),
    Plot("seconds", "Where the time went", ("seconds",), _seconds),
)
