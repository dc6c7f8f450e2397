"""Curves to zoom and hover in JupyterLab, drawn by plotly's extension; a still picture wherever that is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from nbutils.core.charts import LINE_STYLES, MARKERS, THEMES, events_of, lines_of, svg, training_figure
from nbutils.core.history import History, Series, thinned, trend
from nbutils.core.training_log import LOSS, METRICS, Metric
from nbutils.metrics.compare import Compared
from nbutils.metrics.figures import COMPARED, OVER, comparison_figure, look

PLOTLY = "application/vnd.plotly.v1+json"
POINTS = 1000
"""Points of a curve that are kept in a notebook; the spikes are among them."""
MARKS = 200
"""Marks of one kind of event that are kept."""

LOOKS: dict[str, dict[str, Any]] = {
    "raw": {"mode": "markers", "marker_size": 3, "opacity": 0.35},
    "trained": {"mode": "lines", "line_width": 2},
    "alike": {"mode": "markers", "marker_size": 6, "marker_symbol": "diamond-open"},
    "evaluation": {"mode": "lines+markers", "marker_size": 6, "line_width": 1, "line_dash": "dash"},
}
"""What `charts.LOOKS` are in plotly."""
DASHES = dict(zip(LINE_STYLES, ("solid", "dash", "dashdot", "dot"), strict=True))
SYMBOLS = dict(zip(MARKERS, ("circle", "square", "triangle-up", "diamond", "triangle-down", "x"), strict=True))
GREY = "#808080"
"""Readable on white and on black: no colour of the page is known here."""


class Interactive:
    """A plotly figure and the still one; a front end takes the richest that it can show.

    The still one is no PNG: plotly's extension would show that until the mouse comes near.
    """

    def __init__(self, figure: Any, still: Any, text: str) -> None:
        self.figure, self.still, self.text = figure, still, text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {
            PLOTLY: json.loads(self.figure.to_json()),
            "image/svg+xml": svg(self.still).decode(),
            "text/plain": f"<{self.text}>",
        }


def interactive_curves(history: History) -> Interactive:
    """Every metric of a run in one figure whose panels zoom together."""
    metrics = [metric for metric in METRICS if history.holds(metric)]
    rows = -(-len(metrics) // 2) or 1
    figure = _panels(rows, 2, [metric.title for metric in metrics])
    for index, metric in enumerate(metrics):
        place = {"row": index // 2 + 1, "col": index % 2 + 1}
        for line in lines_of(history, metric):
            colour = THEMES["light"].curves[line.colour]
            _add(figure, place, line.series, line.label, colour, legend=not index, **LOOKS[line.look])
        foot = min(history.series(metric.column).finite.values, default=0.0)
        for (label, steps), symbol in zip(events_of(history, metric).items(), ("line-ns-open", "x"), strict=False):
            if few := steps[:: -(-len(steps) // MARKS) or 1]:
                figure.add_scatter(x=few, y=[foot] * len(few), name=label, mode="markers", marker_symbol=symbol,
                                   marker_size=9, marker_color=GREY, hovertemplate="here", **place)  # fmt: skip
        for step in history.resumes[:50]:
            figure.add_vline(x=step, line_width=1, line_dash="dot", line_color=GREY, **place)
        figure.update_xaxes(matches="x" if index else None, title_text="optimizer steps", **place)
        _scale(figure, metric, place)
    figure.update_layout(height=280 * rows, hovermode="x unified")
    return Interactive(figure, training_figure(history), f"curves of {history.last_step} optimizer steps")


def interactive_comparison(runs: Sequence[Compared]) -> Interactive | None:
    """Loss and accuracy of several runs over one another, by steps, tokens and time; a click on a name hides a run.

    None where there are no runs.
    """
    if not runs:
        return None
    metrics = COMPARED.values()
    figure = _panels(len(metrics), len(OVER), [m.title if n == 0 else "" for m in metrics for n in range(len(OVER))])
    for row, metric in enumerate(metrics, start=1):
        for column, (x, label) in enumerate(OVER.items(), start=1):
            place = {"row": row, "col": column}
            for index, run in enumerate(runs):
                colour, style, marker = look(index, "light")
                train = trend(run.history.series(metric.column, x=x))
                evals = run.history.eval_series(metric.evaluation, x=x).finite
                first = row == column == 1
                _add(figure, place, train, run.name, colour, legend=first, mode="lines", line_dash=DASHES[style])
                _add(figure, place, evals, run.name, colour, legend=first and not len(train), mode="markers",
                     marker_symbol=SYMBOLS[marker])  # fmt: skip
            figure.update_xaxes(title_text=label, **place)
            _scale(figure, metric, place)
    figure.update_layout(height=620, hovermode="closest", legend_y=-0.15)
    return Interactive(figure, comparison_figure(list(runs), LOSS), f"curves of {len(runs)} runs")


def _panels(rows: int, columns: int, titles: list[str]) -> Any:
    from plotly.subplots import make_subplots

    figure = make_subplots(rows, columns, subplot_titles=titles, vertical_spacing=0.3 / rows)
    figure.update_layout(
        margin={"l": 50, "r": 20, "t": 40, "b": 40}, font={"color": GREY}, paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)", legend={"orientation": "h", "y": -0.08},
        hoverlabel={"bgcolor": "#ffffff", "font": {"color": "#1f2328"}},
    )  # fmt: skip
    figure.update_annotations(font_size=13)
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(gridcolor="rgba(128,128,128,0.25)", zerolinecolor="rgba(128,128,128,0.25)")
    return figure


def _add(
    figure: Any, place: dict[str, int], series: Series, name: str, colour: str, *, legend: bool, **look: Any
) -> None:
    """Adds a curve, where it has points; a click on its name in the legend hides it in all panels."""
    few = thinned(series, POINTS)
    values = [float(f"{value:.6g}") for value in few.values]  # what a reader can tell apart, in a small notebook
    if values:
        figure.add_scatter(x=few.steps.tolist(), y=values, name=name, legendgroup=name, showlegend=legend,
                           line_color=colour, marker_color=colour, hovertemplate="%{y:.4~g}",
                           **look, **place)  # fmt: skip


def _scale(figure: Any, metric: Metric, place: dict[str, int]) -> None:
    rangemode = "tozero" if metric.from_zero else None
    figure.update_yaxes(tickformat=".2~%" if metric.is_share else None, rangemode=rangemode, **place)
