"""What notebook 03 shows: tables, curves to zoom, and figures, which it also keeps; no number is made here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from itertools import cycle, groupby, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.express as px
from IPython.display import Image, Markdown, display
from matplotlib.ticker import EngFormatter

from nbutils.core.charts import (
    LINE_STYLES,
    MARKERS,
    THEMES,
    WIDTH,
    add_legend,
    caption,
    draw_metric,
    events_of,
    file_of,
    lines_of,
    new_figure,
    save,
    training_figure,
    write_values,
)  # fmt: skip
from nbutils.core.errors import UserError
from nbutils.core.files import Json, read_json
from nbutils.core.history import History, Series, thinned, trend
from nbutils.core.run.layout import Run
from nbutils.core.stages import maker
from nbutils.core.text import counted, duration, markdown_table, score_of
from nbutils.core.training_log import ACCURACY, LOSS, METRICS, SECONDS, Metric
from nbutils.metrics.summary import Compared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = {name: tuple(metrics) for name, metrics in groupby(METRICS, key=lambda metric: metric.figure)}
"""Figures of a run: file name and the metrics that it shows, one above the other."""

OVER = {"step": "optimizer steps", "total_tokens": "tokens", "elapsed": "seconds of training"}
"""What compared curves are drawn over: the column of the training rows, and its name on the axis."""

COMPARED = {"compare_loss": LOSS, "compare_accuracy": ACCURACY}
"""Figures of a comparison: file name and metric."""

PLOTLY = "application/vnd.plotly.v1+json"
POINTS = 600
"""Points of a curve that are kept in a notebook; the spikes are among them."""


def number_table(summary: Json) -> Any:
    """The final numbers of a run as a Markdown table; what a run did not log is left out."""
    final, best, untrained = summary["final"], summary["best"], summary["untrained"]
    over = ", all tokens" if summary["counts_all_tokens"] else ""
    chosen = summary["chosen"] if (summary["chosen"] or {}).get("evaluations") else None
    rows: list[tuple[str, Any, str]] = [
        ("optimizer steps", summary["steps"], "{:,}"),
        ("epochs", summary["epochs"], "{:.2f}"),
        (
            "final model",
            chosen and (chosen["step"], counted(chosen["evaluations"], "evaluation")),
            "step {0[0]:,}, the best of {0[1]}",
        ),
        (f"training loss, smoothed{over}", final["loss"], "{:.3f} nats per token"),
        ("evaluation loss, all tokens", final["eval_loss_all_tokens"] if over else None, "{:.3f}"),
        ("evaluation loss, assistant's tokens", final["eval_loss"], "{:.3f} nats per token"),
        ("… before training", untrained["eval_loss"], "{:.3f}"),
        ("… lowest", best["eval_loss"], "{0[value]:.3f} at step {0[step]}"),
        ("… of the last step", summary["last"] if chosen and chosen["step"] < summary["steps"] else None, "{:.3f}"),
        ("perplexity, assistant's tokens", final["perplexity"], "{:.1f}"),
        ("evaluation token accuracy, assistant's tokens", final["eval_token_accuracy"], "{:.1%}"),
        ("tokens seen", summary["total_tokens"], "{:,}"),
        ("… supervised", summary["supervised_tokens"], "{:,}"),
        ("time", summary["hours"] and duration(summary["hours"] * 3600), "{}"),
        *((f"{m.label.lower()}, {m.over_run}", summary[m.column], m.form_with_unit) for m in METRICS if m.over_run),
        ("resumed at step", ", ".join(map(str, summary["resumes"])) or None, "{}"),
        ("fp16 steps skipped", summary["skipped_steps"] or None, "{}"),
    ]
    return Markdown(
        markdown_table(["", ""], [[name, form.format(value)] for name, value, form in rows if value is not None])
    )


def remark_list(remarks: list[Json]) -> Any:
    """The remarks on a run as a Markdown list, or a line saying that there are none."""
    if not remarks:
        return Markdown("Nothing stands out: no overfitting, divergence, spikes, or waiting for data.")
    return Markdown("\n".join(f"- **{remark['kind'].replace('_', ' ')}** — {remark['text']}" for remark in remarks))


def comparison(differences: dict[str, Json], runs: list[Compared], folder: Path) -> Any:
    """The figures, which are kept, and the table of compared runs, or a line that says how to compare some.

    A row for each parameter or result that differs, a column for each run; below them stand the scores of notebook 04,
    of the runs that it has scored by now.
    """
    if not runs:
        return Markdown("No other run was named in `compare_runs`.")
    for name, metric in COMPARED.items():
        display(save(partial(comparison_figure, runs, metric), folder, name))
    names = [run.name for run in runs]
    rows = []
    for name, row in (differences | scores(runs)).items():
        values = (row.get(run, "not scored") for run in names)
        rows.append([name, *(f"{value:,.4g}" if isinstance(value, float) else value for value in values)])
    return Markdown(markdown_table(["", *names], rows))


def scores(runs: list[Compared]) -> dict[str, Json]:
    """Each score of notebook 04 by run, with its 95 % interval and number of items; empty where no run has any."""
    found: dict[str, dict[str, str]] = {}
    for run in runs:
        results = Run(run.folder).folder(maker("scores").name) / "results.json"
        for row in read_json(results)["scores"] if results.is_file() else []:
            if row["model"] == "run" and "part" not in row:
                label, value = f"{row['task']}, {row['metric']}", f"{score_of(row)}, {row['n']:,} items"
                found.setdefault(label, {})[run.name] = value
    return found


def picture(folder: Path, *names: str) -> None:
    """Shows saved figures, one below the other; a name that was not written is passed over."""
    files = [file for name in names if (file := folder / f"{name}.png").is_file()]
    if not files:
        raise UserError(f"The run logged nothing to draw {' or '.join(names)} from; see train/metrics.jsonl.")
    for file in files:
        display(Image(filename=str(file), width=800))


def interactive_curves(history: History) -> None:
    """Shows every metric of a run in one figure whose panels zoom together."""
    curves = []
    for metric in METRICS:
        curves += [_points(line.series, metric=metric.title, line=line.label) for line in lines_of(history, metric)]
        foot = min(history.series(metric.column).values, default=0.0)
        for label, steps in events_of(history, metric).items():
            marks = Series.of(np.array(steps), np.full(len(steps), foot))
            curves.append(_points(marks, metric=metric.title, line=label))
    figure = _panels(curves, facet_col="metric", facet_col_wrap=2, height=1100, labels={"x": "optimizer steps"})
    for step in history.resumes:
        figure.add_vline(x=step, line_dash="dot")
    figure.update_layout(hovermode="x unified")
    _show(figure, training_figure(history), f"curves of {history.last_step} optimizer steps")


def interactive_comparison(runs: list[Compared]) -> None:
    """Shows loss and accuracy of several runs over one another, by steps, tokens and time.

    A click on a name hides a run. Nothing where there are no runs.
    """
    curves = []
    for run, metric, (x, over) in product(runs, COMPARED.values(), OVER.items()):
        panel = {"line": run.name, "metric": metric.title, "over": over}
        curves.append(_points(trend(run.history.series(metric.column, x=x)), kind="training", **panel))
        curves.append(_points(run.history.eval_series(metric.evaluation, x=x), kind="evaluation", **panel))
    if curves:
        figure = _panels(curves, facet_row="metric", facet_col="over", line_dash="kind", height=650, labels={"x": ""})
        figure.update_xaxes(matches=None)
        _show(figure, comparison_figure(runs, LOSS), f"curves of {len(runs)} runs")


def _points(series: Series, **names: str) -> pd.DataFrame:
    few = thinned(series, POINTS)
    values = [float(f"{value:.6g}") for value in few.values]  # else the axis of what is constant shows noise
    return pd.DataFrame({"x": few.steps, "value": values, **names})


def _panels(curves: list[pd.DataFrame], **options: Any) -> Any:
    """Curves in panels, each with axes of its own: training as lines, all else as markers."""
    frame = pd.concat(curves).astype(object)  # else numbers become plotly's arrays, which not every front end reads
    figure = px.line(frame, x="x", y="value", color="line", render_mode="svg", facet_col_spacing=0.08, **options)
    figure.update_xaxes(showticklabels=True).update_yaxes(matches=None, showticklabels=True, title="")
    figure.for_each_annotation(lambda note: note.update(text=note.text.partition("=")[2]))
    return figure.for_each_trace(lambda trace: trace.update(mode="lines" if "training" in trace.name else "markers"))


def _show(figure: Any, still: Any, text: str) -> None:
    """Shows a plotly figure and the still one; a front end takes the richest that it can show.

    The still one is no PNG: plotly's extension would show that until the mouse comes near.
    """
    bundle = {
        PLOTLY: json.loads(figure.to_json()),
        "image/svg+xml": file_of(still, "svg").decode(),
        "text/plain": f"<{text}>",
    }
    display(bundle, raw=True)


def save_figures(history: History, folder: Path) -> dict[str, str]:
    """Writes every figure that the history has data for, as PNG and SVG, light and dark; returns name → caption."""
    written = {}
    for name, metrics in FIGURES.items():
        if any(history.holds(metric) for metric in metrics):
            save(partial(metric_figure, history, metrics), folder, name)
            words = ("training and evaluation " * bool(metric.evaluation) + metric.label for metric in metrics)
            written[name] = " and ".join(words).capitalize()
    if any(history.seconds.values()):
        save(partial(_seconds, history), folder, "seconds")
        written["seconds"] = "Where the time went"
    return written


def metric_figure(history: History, metrics: Sequence[Metric], theme: str = "light") -> Figure:
    """Metrics over optimizer steps, one above the other."""
    figure, panels = new_figure(len(metrics), 1, theme=theme, height=1.8 + 1.4 * len(metrics), sharex=True)
    for axes, metric in zip(panels, metrics, strict=True):
        draw_metric(axes, history, metric, theme=theme)
        values = history.series(metric.column).values
        if metric.from_zero:  # with room above what is nearly constant
            axes.set_ylim(0, axes.get_ylim()[1] * 1.1 or 1)
        elif len(values) and values.min() > 0 and values.max() > 50 * np.median(values):  # else spikes flatten all else
            axes.set_yscale("log")
        axes.label_outer()
        legend = axes.get_legend()
        if axes is not panels[0] and legend:
            legend.remove()  # the panel above explains the same lines
    return figure


def comparison_figure(runs: list[Compared], metric: Metric, theme: str = "light") -> Figure:
    """Evaluation (markers) and training curves of all runs, by steps, tokens and time side by side, over one legend.

    Runs differ by colour, line style and marker. At the lines' ends stand the final values of the evaluations.
    """
    height = 3.7
    figure, panels = new_figure(1, 3, theme=theme, width=WIDTH * 1.25, height=height)
    figure.subplots_adjust(bottom=(0.55 + 0.22 * -(-(len(runs) + 2) // 3)) / height)
    for axes, (x, label) in zip(panels, OVER.items(), strict=True):
        ends = []
        styles = cycle(THEMES[theme].curves), cycle(LINE_STYLES), cycle(MARKERS)
        for run, colour, style, marker in zip(runs, *styles, strict=False):
            line = trend(run.history.series(metric.column, x=x))
            evals = thinned(run.history.eval_series(metric.evaluation, x=x), 60)
            look: Json = {"color": colour, "marker": marker, "markersize": 4.5}
            name = run.name if axes is panels[0] else None  # the legend shows the marker, too, and the line none
            axes.plot(line.steps, line.values, style, linewidth=1.2, alpha=0.8, markevery=[], label=name, **look)
            axes.plot(evals.steps, evals.values, linestyle="", markeredgecolor=THEMES[theme].page, **look)
            if evals.ended:
                ends.append((evals.values[-1], colour))
        caption(axes, theme, metric.title if axes is panels[0] else "", label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        write_values(axes, metric, ends)
    for label, style, marker in (("lines: training, smoothed", "-", ""), ("markers: evaluation", "", "o")):
        panels[0].plot([], [], label=label, color=THEMES[theme].ink, ls=style, marker=marker, markersize=4.5)
    add_legend(figure, theme, loc="lower left", ncols=3, bbox_to_anchor=(0.05, 0.0))
    return figure


def _seconds(history: History, theme: str) -> Figure:
    """One bar for each part of the time, longest first, with seconds and share written beside it."""
    spent = pd.Series(history.seconds).rename(SECONDS | {"other": "everything else"}).sort_values()
    spent = spent[spent > 0]
    figure, (axes,) = new_figure(1, 1, theme=theme, height=0.9 + 0.34 * len(spent))
    figure.subplots_adjust(left=0.18)
    bars = axes.barh(spent.index, spent, color=THEMES[theme].first, height=0.62)
    words = [f"{duration(seconds)} · {seconds / spent.sum():.0%}" for seconds in spent]
    axes.bar_label(bars, words, padding=4, fontsize=8, color=THEMES[theme].ink)
    axes.margins(x=0.16)
    axes.grid(False, axis="y")
    caption(axes, theme, f"Where {duration(spent.sum())} of training went", "seconds")
    return figure
