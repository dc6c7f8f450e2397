"""What notebook 03 shows: tables, pictures, and curves to zoom; nothing here changes what the stage writes."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Image, Markdown, display

from nbutils.core.charts import events_of, file_of, lines_of, training_figure
from nbutils.core.errors import UserError
from nbutils.core.files import read_json
from nbutils.core.history import History, Series, thinned, trend
from nbutils.core.run.layout import Run
from nbutils.core.stages import maker
from nbutils.core.text import duration, markdown_table, number, with_interval
from nbutils.core.training_log import LOSS, METRICS
from nbutils.metrics.compare import Compared
from nbutils.metrics.figures import COMPARED, OVER, comparison_figure

PLOTLY = "application/vnd.plotly.v1+json"
POINTS = 600
"""Points of a curve that are kept in a notebook; the spikes are among them."""


def number_table(summary: dict[str, Any]) -> Any:
    """The final numbers of a run as a Markdown table; what a run did not log is left out."""
    final, best, untrained = summary["final"], summary["best"], summary["untrained"]
    over = ", all tokens" if summary["counts_all_tokens"] else ""
    rows: list[tuple[str, Any, str]] = [
        ("optimizer steps", summary["steps"], "{:,}"),
        ("epochs", summary["epochs"], "{:.2f}"),
        (f"training loss, smoothed{over}", final["loss"], "{:.3f} nats per token"),
        ("evaluation loss, all tokens", final["eval_loss_all_tokens"] if over else None, "{:.3f}"),
        ("evaluation loss, assistant's tokens", final["eval_loss"], "{:.3f} nats per token"),
        ("… before training", untrained["eval_loss"], "{:.3f}"),
        ("… lowest", best["eval_loss"], "{0[value]:.3f} at step {0[step]}"),
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


def remark_list(remarks: list[dict[str, Any]]) -> Any:
    """The remarks on a run as a Markdown list, or a line saying that there are none."""
    if not remarks:
        return Markdown("Nothing stands out: no overfitting, divergence, spikes, or waiting for data.")
    return Markdown("\n".join(f"- **{remark['kind'].replace('_', ' ')}** — {remark['text']}" for remark in remarks))


def comparison(differences: dict[str, dict[str, Any]], runs: list[Compared], folder: Path) -> Any:
    """The figures and the table of compared runs, or a line that says how to compare some.

    A row for each parameter or result that differs, a column for each run; below them stand the scores of notebook 04,
    of the runs that it has scored by now.
    """
    if not runs:
        return Markdown("No other run was named in `compare_runs`.")
    picture(folder, *COMPARED)
    rows = [
        [name, *(f"{value:,.4g}" if isinstance(value, float) else value for value in row.values())]
        for name, row in (differences | scores(runs)).items()
    ]
    return Markdown(markdown_table(["", *(run.name for run in runs)], rows))


def scores(runs: list[Compared]) -> dict[str, dict[str, Any]]:
    """Each score of notebook 04 by run, with its 95 % interval and number of items; empty where no run has any."""
    found: dict[str, dict[str, str]] = {}
    none = dict.fromkeys((run.name for run in runs), "not scored")
    for run in runs:
        results = Run(run.folder).folder(maker("scores").name) / "results.json"
        for row in read_json(results)["scores"] if results.is_file() else []:
            if row["model"] == "run" and "part" not in row:
                value = with_interval(row["value"], row["low"], row["high"]) if "low" in row else number(row["value"])
                cells = found.setdefault(f"{row['task']}, {row['metric']}", none.copy())
                cells[run.name] = f"{value}, {row['n']:,} items"
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
        foot = min(history.series(metric.column).finite.values, default=0.0)
        for label, steps in events_of(history, metric).items():
            marks = Series(np.array(steps), np.full(len(steps), foot))
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
        curves.append(_points(run.history.eval_series(metric.evaluation, x=x).finite, kind="evaluation", **panel))
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
    import plotly.express as px

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
