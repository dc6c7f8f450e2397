"""Curves to zoom and hover in JupyterLab, drawn by plotly's extension; a still picture wherever that is missing."""

from __future__ import annotations

import json
from typing import Any

from nbutils.core.canvas import THEMES, svg
from nbutils.core.figures import ACCURACY, LOSS, Curve, training_figure
from nbutils.core.history import History, Series, thinned, trend
from nbutils.metrics.figures import NORM, RATE

PLOTLY = "application/vnd.plotly.v1+json"
POINTS = 1000
"""Points of a curve that are kept in a notebook; the spikes are among them."""


class InteractiveCurves:
    """Loss, accuracy, learning rate and gradient norm in one figure whose panels zoom together."""

    def __init__(self, history: History) -> None:
        self.history = history

    def figure(self) -> Any:
        """The plotly figure."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        curves = (LOSS, ACCURACY, RATE, NORM)
        titles = [curve.title for curve in curves]
        figure = make_subplots(2, 2, shared_xaxes="all", subplot_titles=titles, vertical_spacing=0.14)
        for index, curve in enumerate(curves):
            for trace in _traces(self.history, curve, legend=index == 0):
                figure.add_trace(go.Scatter(trace), row=index // 2 + 1, col=index % 2 + 1)
            if curve.form.endswith("%}"):
                figure.update_yaxes(tickformat=".0%", row=index // 2 + 1, col=index % 2 + 1)
        for step in self.history.resumes[:50]:
            figure.add_vline(x=step, line_width=1, line_dash="dot", line_color="#888888")
        # No colour of the page is known here: transparent, with a grey that is readable on white and on black.
        figure.update_layout(
            height=560, margin={"l": 50, "r": 20, "t": 40, "b": 40}, hovermode="x unified", font={"color": "#808080"},
            paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", legend={"orientation": "h", "y": -0.1},
            hoverlabel={"bgcolor": "#ffffff", "font": {"color": "#1f2328"}},
        )  # fmt: skip
        figure.update_xaxes(gridcolor="rgba(128,128,128,0.25)", zerolinecolor="rgba(128,128,128,0.25)")
        figure.update_yaxes(gridcolor="rgba(128,128,128,0.25)", zerolinecolor="rgba(128,128,128,0.25)")
        figure.update_xaxes(title_text="optimizer steps", row=2)
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


def _traces(history: History, curve: Curve, *, legend: bool) -> list[dict[str, Any]]:
    """Raw points, smoothed line and evaluations, each as a plotly trace."""
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
    return traces


def _trace(series: Series, name: str, mode: str, legend: bool, **look: Any) -> dict[str, Any]:
    values = [float(f"{value:.6g}") for value in series.values]  # what a reader can tell apart, in a small notebook
    shown = {"name": name, "mode": mode, "legendgroup": name, "showlegend": legend, "hovertemplate": "%{y:.4~g}"}
    return {"x": series.steps.tolist(), "y": values, **shown, **look}
