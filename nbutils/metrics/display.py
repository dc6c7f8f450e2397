"""Tables and pictures of notebook 03; nothing here changes what the stage writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import read_json
from nbutils.core.run.layout import Run
from nbutils.core.stages import maker
from nbutils.core.training_log import METRICS
from nbutils.metrics.compare import Compared
from nbutils.metrics.figures import COMPARED, duration
from nbutils.metrics.interactive import interactive_comparison, interactive_curves

__all__ = [
    "comparison", "difference_table", "interactive_comparison", "interactive_curves", "number_table", "picture",
    "remark_list",
]  # fmt: skip


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
    return _markdown(["", ""], [[name, form.format(value)] for name, value, form in rows if value is not None])


def remark_list(remarks: list[dict[str, Any]]) -> Any:
    """The remarks on a run as a Markdown list, or a line saying that there are none."""
    from IPython.display import Markdown

    if not remarks:
        return Markdown("Nothing stands out: no overfitting, divergence, spikes, or waiting for data.")
    return Markdown("\n".join(f"- **{remark['kind'].replace('_', ' ')}** — {remark['text']}" for remark in remarks))


def difference_table(differences: dict[str, dict[str, Any]]) -> Any:
    """What differs between compared runs as a Markdown table: a row per parameter or result, a column per run."""
    runs = list(next(iter(differences.values())))
    return _markdown(["", *runs], [[name, *(_cell(row[run]) for run in runs)] for name, row in differences.items()])


def comparison(differences: dict[str, dict[str, Any]], runs: list[Compared], folder: Path) -> Any:
    """The figures and the table of compared runs, or a line that says how to compare some.

    Below the differences stand the scores of notebook 04, of the runs that it has scored by now.
    """
    from IPython.display import Markdown

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
    from IPython.display import Image, display

    files = [folder / f"{name}.png" for name in names]
    if not any(file.is_file() for file in files):
        raise UserError(f"The run logged nothing to draw {' or '.join(names)} from; see train/metrics.jsonl.")
    for file in files:
        if file.is_file():
            display(Image(filename=str(file), width=800))


def _markdown(head: list[str], rows: Iterable[list[str]]) -> Any:
    from IPython.display import Markdown

    lines = [head, ["---"] * len(head), *rows]
    return Markdown("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines))


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
    between = "" if row.get("low") is None else f" [{_cell(float(row['low']))}, {_cell(float(row['high']))}]"
    return f"{_cell(float(row['value']))}{between}, {row['n']:,} items"


def _cell(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
