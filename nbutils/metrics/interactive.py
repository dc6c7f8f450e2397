"""Curves to zoom and hover in JupyterLab, drawn by plotly's extension; a still picture wherever that is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from nbutils.core.canvas import THEMES, svg
from nbutils.core.figures import ACCURACY, LOSS, Curve, training_figure
from nbutils.core.history import History, Series, thinned, trend
from nbutils.metrics.compare import OVER, Run, comparison_figure
from nbutils.metrics.figures import MEMORY, NORM, PADDING, PARTS, RATE, SPEED, duration

PLOTLY = "application/vnd.plotly.v1+json"
POINTS = 1000
"""Points of a curve that are kept in a notebook; the spikes are among them."""
MARKS = 200
"""Marks of one kind of event that are kept."""

CURVES = (LOSS, ACCURACY, RATE, NORM, SPEED, PADDING, MEMORY)
DASHES = ("solid", "dash", "dashdot", "dot")
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "x")
GREY = "#808080"
"""Readable on white and on black: no colour of the page is known here."""


class InteractiveCurves:
    """Every curve of a run in one figure whose panels zoom together, and where the time went."""

    def __init__(self, history: History) -> None:
        self.history = history

    def figure(self) -> Any:
        """The plotly figure: a panel for each curve that was logged, the last one for the seconds."""
        history = self.history
        curves = [c for c in CURVES if len(history.series(c.train).finite) or len(history.eval_series(c.evaluation))]
        parts = {part: seconds for part, seconds in history.seconds().items() if seconds > 0}
        titles = [curve.title for curve in curves] + (["Where the time went, seconds"] if parts else [])
        figure = _panels(-(-len(titles) // 2) or 1, 2, titles)
        for index, curve in enumerate(curves):
            place = {"row": index // 2 + 1, "col": index % 2 + 1}
            for trace in _traces(history, curve, legend=index == 0):
                figure.add_trace(trace, **place)
            for step in history.resumes[:50]:
                figure.add_vline(x=step, line_width=1, line_dash="dot", line_color=GREY, **place)
            figure.update_xaxes(matches="x" if index else None, title_text="optimizer steps", **place)
            _percent(figure, curve, place)
            if curve in (SPEED, PADDING, MEMORY):
                figure.update_yaxes(rangemode="tozero", **place)
        if parts:
            place = {"row": len(curves) // 2 + 1, "col": len(curves) % 2 + 1}
            figure.add_trace(_bars(parts), **place)
            figure.update_yaxes(showticklabels=False, **place)  # the names stand in the bars, or behind short ones
        figure.update_layout(height=280 * (-(-len(titles) // 2) or 1), hovermode="x unified")
        return figure

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Both forms; a front end takes the richest that it can show.

        The still one is no PNG: plotly's extension would show that until the mouse comes near.
        """
        return {
            PLOTLY: json.loads(self.figure().to_json()),
            "image/svg+xml": svg(training_figure(self.history)).decode(),
            "text/plain": f"<curves of {self.history.last_step} optimizer steps>",
        }


class InteractiveComparison:
    """Loss and accuracy of several runs over one another, by steps, tokens and time; a click on a name hides a run."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)

    def figure(self) -> Any:
        """The plotly figure: a row for each curve, a column for each thing that it is drawn over."""
        curves = (LOSS, ACCURACY)
        figure = _panels(len(curves), len(OVER), [c.title if n == 0 else "" for c in curves for n in range(len(OVER))])
        for row, curve in enumerate(curves):
            for column, (x, label) in enumerate(OVER.items()):
                place = {"row": row + 1, "col": column + 1}
                for index, run in enumerate(self.runs):
                    for trace in _run_traces(run, index, curve, x, legend=row == column == 0):
                        figure.add_trace(trace, **place)
                figure.update_xaxes(title_text=label, **place)
                _percent(figure, curve, place)
        figure.update_layout(height=620, hovermode="closest", legend_y=-0.15)
        return figure

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Both forms, as `InteractiveCurves` has them."""
        return {
            PLOTLY: json.loads(self.figure().to_json()),
            "image/svg+xml": svg(comparison_figure(self.runs, LOSS)).decode(),
            "text/plain": f"<curves of {len(self.runs)} runs>",
        }


def _panels(rows: int, columns: int, titles: list[str]) -> Any:
    from plotly.subplots import make_subplots

    figure = make_subplots(rows, columns, subplot_titles=titles, vertical_spacing=0.3 / rows)
    figure.update_layout(
        margin={"l": 50, "r": 20, "t": 40, "b": 40}, font={"color": GREY}, paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)", legend={"orientation": "h", "y": -0.08},
        hoverlabel={"bgcolor": "#ffffff", "font": {"color": "#1f2328"}},
    )  # fmt: skip
    figure.update_annotations(font_size=13)
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.25)", zerolinecolor="rgba(128,128,128,0.25)")
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.25)", zerolinecolor="rgba(128,128,128,0.25)")
    return figure


def _percent(figure: Any, curve: Curve, place: dict[str, int]) -> None:
    if curve.form.endswith("%}"):
        figure.update_yaxes(tickformat=".2~%", **place)


def _traces(history: History, curve: Curve, *, legend: bool) -> list[dict[str, Any]]:
    """Raw points, smoothed line, evaluations and, on the loss, events, each as a plotly trace."""
    blue, orange = THEMES["light"].first, THEMES["light"].second
    apart = history.counts_all_tokens
    names = ("training (all tokens)", "evaluation (assistant's tokens)") if apart else ("training", "evaluation")
    train, evals = history.series(curve.train).finite, history.eval_series(curve.evaluation).finite
    traces = []
    if curve.smooth and len(train) >= 5:
        look: dict[str, Any] = {"opacity": 0.35, "marker": {"color": blue, "size": 3}}
        traces.append(_trace(thinned(train, POINTS), f"{names[0]}, as logged", "markers", legend, **look))
        train = trend(train)
    if len(train):
        line = {"color": blue, "width": 2}
        traces.append(_trace(thinned(train, POINTS), names[0], "lines", legend, line=line))
    if len(evals):
        look = {"line": {"color": orange, "width": 1, "dash": "dash"}, "marker": {"color": orange, "size": 6}}
        traces.append(_trace(thinned(evals, POINTS), names[1], "lines+markers", legend, **look))
    return traces + (_events(history) if curve is LOSS else [])


def _events(history: History) -> list[dict[str, Any]]:
    """Skipped fp16 steps and values that are no number, at the foot of the loss."""
    loss = history.series("loss")
    foot = float(loss.finite.values.min()) if len(loss.finite) else 0.0
    found = {
        "fp16 steps skipped": (history.skipped_at(), "line-ns-open", THEMES["light"].second),
        "not a number": (loss.steps[~np.isfinite(loss.values)].tolist(), "x", GREY),
    }
    traces = []
    for name, (steps, symbol, colour) in found.items():
        if steps:
            kept = steps[:: -(-len(steps) // MARKS)]
            marker = {"color": colour, "size": 9, "symbol": symbol, "line": {"color": colour, "width": 1}}
            series = Series(np.array(kept, dtype=float), np.full(len(kept), foot))
            trace = _trace(series, name, "markers", True, marker=marker)
            traces.append(trace | {"hovertemplate": "here"})
    return traces


def _bars(parts: dict[str, float]) -> dict[str, Any]:
    """One bar for each part of the time, the longest on top."""
    ordered = sorted(parts, key=parts.__getitem__)
    words = [f"{PARTS[part]} · {duration(parts[part])}" for part in ordered]
    return {
        "type": "bar", "orientation": "h", "x": [round(parts[part], 3) for part in ordered],
        "y": [PARTS[part] for part in ordered], "text": words,
        "textposition": "auto", "insidetextanchor": "start", "cliponaxis": False, "showlegend": False,
        "marker": {"color": THEMES["light"].first}, "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _run_traces(run: Run, index: int, curve: Curve, x: str, *, legend: bool) -> list[dict[str, Any]]:
    """One run's smoothed training line and its evaluations, which its name in the legend hides together."""
    colours = THEMES["light"].curves
    colour, dash, symbol = (choices[index % len(choices)] for choices in (colours, DASHES, SYMBOLS))
    train, evals = run.history.series(curve.train, x=x), run.history.eval_series(curve.evaluation, x=x).finite
    line, marker = {"color": colour, "width": 2, "dash": dash}, {"color": colour, "size": 6, "symbol": symbol}
    traces = [
        _trace(thinned(series, POINTS), run.name, mode, legend, **look)
        | {"hovertemplate": f"{kind} %{{y:.4~g}}", "showlegend": legend and kind == "training"}
        for kind, series, mode, look in (
            ("training", trend(train), "lines", {"line": line}),
            ("evaluation", evals, "markers", {"marker": marker}),
        )
        if len(series)
    ]
    if traces:
        traces[0]["showlegend"] = legend  # also of a run that logged evaluations alone
    return traces


def _trace(series: Series, name: str, mode: str, legend: bool, **look: Any) -> dict[str, Any]:
    values = [float(f"{value:.6g}") for value in series.values]  # what a reader can tell apart, in a small notebook
    shown = {"name": name, "mode": mode, "legendgroup": name, "showlegend": legend, "hovertemplate": "%{y:.4~g}"}
    return {"type": "scatter", "x": series.steps.tolist(), "y": values, **shown, **look}
