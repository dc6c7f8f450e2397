"""What notebook 03 shows: tables, pictures, and curves to zoom; nothing here changes what the stage writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from IPython.display import Image, Markdown, display

from nbutils.core.charts import LINE_STYLES, MARKERS, THEMES, events_of, lines_of, svg, training_figure
from nbutils.core.errors import UserError
from nbutils.core.files import read_json
from nbutils.core.history import History, Series, thinned, trend
from nbutils.core.run.layout import Run
from nbutils.core.stages import maker
from nbutils.core.text import duration, markdown_table, number, with_interval
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


def number_table(summary: dict[str, Any]) -> Any:
    """The final numbers of a run as a Markdown table; what a run did not log is left out."""
    final, best, untrained = summary["final"], summary["best"], summary["untrained"]
    lowest = best["eval_loss"] if best["eval_loss"] and best["eval_loss"]["step"] < summary["steps"] else None
    over = ", all tokens" if summary["counts_all_tokens"] else ""
    hours = summary["hours"]
    rows: list[tuple[str, Any, str]] = [
        ("optimizer steps", _steps(summary), "{}"),
        ("epochs", summary["epochs"], "{:.2f}"),
        (f"training loss, smoothed{over}", final["loss"], "{:.3f} nats per token"),
        ("evaluation loss, all tokens", final["eval_loss_all_tokens"] if over else None, "{:.3f}"),
        ("evaluation loss, assistant's tokens", final["eval_loss"], "{:.3f} nats per token"),
        ("… before training", untrained["eval_loss"], "{:.3f}"),
        ("… lowest", lowest, "{0[value]:.3f} at step {0[step]}"),
        ("perplexity, assistant's tokens", final["perplexity"], "{:.1f}"),
        ("evaluation token accuracy, assistant's tokens", final["eval_token_accuracy"], "{:.1%}"),
        ("tokens seen", summary["total_tokens"], "{:,}"),
        ("… supervised", summary["supervised_tokens"], "{:,}"),
        ("time", None if hours is None else duration(hours * 3600), "{}"),
        *((f"{m.label.lower()}, {m.over_run}", summary[m.column], m.form_with_unit) for m in METRICS if m.over_run),
        ("sessions", _sessions(summary), "{}"),
        ("fp16 steps skipped", summary["skipped_steps"] or None, "{}"),
    ]
    return Markdown(
        markdown_table(["", ""], [[name, form.format(value)] for name, value, form in rows if value is not None])
    )


def remark_list(remarks: list[dict[str, Any]]) -> Any:
    """The remarks on a run as a Markdown list, or a line saying that there are none."""
    if not remarks:
        return Markdown("Nothing stands out: no overfitting, divergence, spikes, or waiting for data.")
    return Markdown("\n".join(f"- **{remark['kind'].replace('_', ' ')}** — {remark['text']}" for remark in remarks))


def difference_table(differences: dict[str, dict[str, Any]]) -> Any:
    """What differs between compared runs as a Markdown table: a row per parameter or result, a column per run."""
    runs = next(iter(differences.values()))
    rows = [[name, *map(_cell, row.values())] for name, row in differences.items()]
    return Markdown(markdown_table(["", *runs], rows))


def comparison(differences: dict[str, dict[str, Any]], runs: list[Compared], folder: Path) -> Any:
    """The figures and the table of compared runs, or a line that says how to compare some.

    Below the differences stand the scores of notebook 04, of the runs that it has scored by now.
    """
    if not runs:
        return Markdown("No other run was named in `compare_runs`.")
    picture(folder, *COMPARED)
    return difference_table(differences | scores(runs))


def scores(runs: list[Compared]) -> dict[str, dict[str, Any]]:
    """Each score of notebook 04 by run, with its 95 % interval and number of items; empty where no run has any."""
    found: dict[str, dict[str, str]] = {}
    for run in runs:
        results = Run(run.folder).folder(maker("scores").name) / "results.json"
        rows = read_json(results)["scores"] if results.is_file() else []
        own = (row for row in rows if row["model"] == "run" and "part" not in row)
        found[run.name] = {f"{row['task']}, {row['metric']}": _score(row) for row in own}
    names = dict.fromkeys(name for run in found.values() for name in run)
    absent = {run: "—" if rows else "not scored yet" for run, rows in found.items()}
    return {name: {run: rows.get(name, absent[run]) for run, rows in found.items()} for name in names}


def picture(folder: Path, *names: str) -> None:
    """Shows saved figures, one below the other; a name that was not written is passed over."""
    files = [file for name in names if (file := folder / f"{name}.png").is_file()]
    if not files:
        raise UserError(f"The run logged nothing to draw {' or '.join(names)} from; see train/metrics.jsonl.")
    for file in files:
        display(Image(filename=str(file), width=800))


def _steps(summary: dict[str, Any]) -> str:
    planned = summary["planned_steps"]
    return f"{summary['steps']:,}" + (f" of {planned:,}" if planned and planned != summary["steps"] else "")


def _sessions(summary: dict[str, Any]) -> str | None:
    steps = summary["resumes"]
    if not steps:
        return None
    listed = ", ".join(map(str, steps[:5])) + (" …" if len(steps) > 5 else "")
    return f"{summary['sessions']}, resumed at step {listed}"


def _score(row: dict[str, Any]) -> str:
    value = with_interval(row["value"], row["low"], row["high"]) if "low" in row else number(row["value"])
    return f"{value}, {row['n']:,} items"


def _cell(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def interactive_curves(history: History) -> None:
    """Shows every metric of a run in one figure whose panels zoom together."""
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
    _show(figure, training_figure(history), f"curves of {history.last_step} optimizer steps")


def interactive_comparison(runs: Sequence[Compared]) -> None:
    """Shows loss and accuracy of several runs over one another, by steps, tokens and time.

    A click on a name hides a run. Nothing where there are no runs.
    """
    if not runs:
        return
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
    _show(figure, comparison_figure(list(runs), LOSS), f"curves of {len(runs)} runs")


def _show(figure: Any, still: Any, text: str) -> None:
    """Shows a plotly figure and the still one; a front end takes the richest that it can show.

    The still one is no PNG: plotly's extension would show that until the mouse comes near.
    """
    bundle = {PLOTLY: json.loads(figure.to_json()), "image/svg+xml": svg(still).decode(), "text/plain": f"<{text}>"}
    display(bundle, raw=True)


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
