"""Figures without pyplot: themes, margins, labels at the ends of lines, and files of the same bytes every time.

Nothing global changes, and importing stays quick. A light and a dark theme; the first two colours (Okabe & Ito 2008)
are told apart by colour-blind eyes, and without colour by line style and marker.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.0
"""Inches; at DPI this is 800 pixels, the width of a model card."""
DPI = 100


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


class End(NamedTuple):
    """A line's final value and colour, and a sign before the value where two lines have one colour."""

    value: float
    colour: str
    sign: str = ""


def new_figure(
    rows: int, columns: int, *, theme: str, width: float, height: float, sharex: bool = False
) -> tuple[Figure, list[Axes]]:
    """An empty figure in a theme and its axes, row by row; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = THEMES[theme]
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=colours.page)
    FigureCanvasAgg(figure)
    # Fixed margins in inches: fitting them would draw each figure twice. The right one holds the final values.
    left, right, bottom, top = 0.66, 0.62, 0.52, 0.36
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex).ravel().tolist()
    panel = (width - (left + right) * columns) / columns
    figure.subplots_adjust(
        left=left / width, right=1 - right / width, bottom=bottom / height, top=1 - top / height,
        wspace=(left + right) / panel, hspace=0.25 if rows > 1 else None,
    )  # fmt: skip
    for ax in axes:
        ax.set_facecolor(colours.page)
        ax.tick_params(colors=colours.ink, labelsize=8, length=3)
        ax.xaxis.label.set_color(colours.ink)
        ax.yaxis.label.set_color(colours.ink)
        ax.grid(True, color=colours.faint, linewidth=0.6)
        ax.set_axisbelow(True)
        for side, spine in ax.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(colours.faint)
    return figure, axes


def drop_legend(axes: Axes | None) -> None:
    """Takes away the legend of a panel whose neighbour explains the same lines."""
    legend = axes.get_legend() if axes is not None else None
    if legend is not None:
        legend.remove()


def label_ends(axes: Axes, ends: list[End], form: str, x: float | None = None) -> None:
    """Writes each line's final value behind the axes, or behind `x` in data; moved apart where two would overlap."""
    if not ends:
        return
    axes.margins(y=0.08)
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height or 1.0
    gap = 13.0 / height * (high - low)  # 13 pixels: one line of the label's text
    places = _apart([end.value for end in ends], gap)
    for end, place in zip(ends, places, strict=True):
        at, horizontal = (1.0, "axes fraction") if x is None else (x, "data")
        axes.annotate(end.sign + form.format(end.value), (at, place), xycoords=(horizontal, "data"),
                      xytext=(4, 0), textcoords="offset points", va="center", fontsize=9, fontweight="bold",
                      color=end.colour, annotation_clip=False)  # fmt: skip


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as a PNG file."""
    return _saved(figure, "png", dpi=dpi)


def svg(figure: Figure) -> bytes:
    """The figure as an SVG file: the same bytes for the same figure."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "smallchat", "svg.fonttype": "none"}):
        return _saved(figure, "svg", metadata={"Date": None})


def _apart(values: list[float], gap: float) -> list[float]:
    """The values moved as little as it takes for neighbours to be `gap` apart.

    Source: isotonic regression by pooling adjacent violators (Ayer et al. 1955).
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    groups: list[tuple[float, int]] = []  # neighbours that touch: sum, each less the room below it; count
    for rank, index in enumerate(order):
        total, count = values[index] - rank * gap, 1
        while groups and groups[-1][0] / groups[-1][1] > total / count:
            below = groups.pop()
            total, count = total + below[0], count + below[1]
        groups.append((total, count))
    moved = [total / count for total, count in groups for _ in range(count)]
    places = list(values)
    for rank, index in enumerate(order):
        places[index] = moved[rank] + rank * gap
    return places


def _saved(figure: Figure, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, facecolor=figure.get_facecolor(), **options)
    return buffer.getvalue()
