"""Several runs side by side: their curves over one another, and what differs in parameters and results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbutils.core.canvas import THEMES, WIDTH, drop_legend, new_figure, png, svg
from nbutils.core.errors import UserError
from nbutils.core.figures import ACCURACY, LOSS, Curve, draw_runs
from nbutils.core.files import replaced, resolve
from nbutils.core.history import History
from nbutils.metrics.figures import FILE_DPI
from nbutils.metrics.settings import MetricsSettings
from nbutils.metrics.summary import read_history, read_training_settings, summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVER = {"step": "optimizer steps", "total_tokens": "tokens", "elapsed": "seconds of training"}
"""What curves are drawn over: the column of the training rows, and its name on the axis."""

COMPARED = {"compare_loss": LOSS, "compare_accuracy": ACCURACY}
"""Figures of a comparison: file name and curve."""

RESULTS = ("steps", "total_tokens", "hours", "tokens_per_second")


@dataclass(frozen=True)
class Run:
    """One run of a comparison: its folder's name, history, training settings and summary."""

    name: str
    history: History
    training: dict[str, Any]
    summary: dict[str, Any]


def read_runs(folders: list[str | Path]) -> list[Run]:
    """The runs in a list of run folders; UserError where they were not measured on the same evaluation set."""
    paths = [resolve(folder) for folder in folders]
    names = _names(paths)
    runs = []
    for name, path in zip(names, paths, strict=True):
        history, training = read_history(path), read_training_settings(path)
        runs.append(Run(name, history, training, summarise(history, training)))
    first = runs[0]
    for run in runs[1:]:
        if run.summary["eval_hash"] != first.summary["eval_hash"]:
            raise UserError(
                f"The runs '{first.name}' and '{run.name}' cannot be compared: their evaluation sets differ "
                f"(hashes {str(first.summary['eval_hash'])[:12]} and {str(run.summary['eval_hash'])[:12]}); give both "
                "the same datasets, split_seed, max_length and base model, or leave one out of compare_runs."
            )
    return runs


def comparison_figure(runs: list[Run], curve: Curve, *, theme: str = "light") -> Figure:
    """Evaluation (markers) and training curves of all runs, by steps, tokens and time side by side."""
    from matplotlib.ticker import EngFormatter

    figure, panels = new_figure(1, 3, theme=theme, width=WIDTH * 1.25, height=3.4)
    for axes, (x, label) in zip(panels, OVER.items(), strict=True):
        draw_runs(axes, {run.name: run.history for run in runs}, curve, x=x, theme=theme)
        axes.set_xlabel(label, fontsize=9)
        axes.set_title(curve.title if axes is panels[0] else "", loc="left", fontsize=10, color=THEMES[theme].ink)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        drop_legend(axes if axes is not panels[0] else None)
    return figure


def save_comparison(runs: list[Run], curve: Curve, folder: Path, name: str) -> None:
    """Writes a comparison as PNG and SVG, light and dark."""
    for theme in THEMES:
        figure = comparison_figure(runs, curve, theme=theme)
        stem = name if theme == "light" else f"{name}-{theme}"
        for file, data in ((f"{stem}.png", png(figure, FILE_DPI)), (f"{stem}.svg", svg(figure))):
            with replaced(folder / file) as partial:
                partial.write_bytes(data)


def save_comparisons(settings: MetricsSettings, folder: Path) -> dict[str, dict[str, Any]]:
    """Draws this run and `compare_runs` over one another (`compare_loss`, `compare_accuracy`); returns `differences`.

    An empty mapping where there is nothing to compare.
    """
    if not settings.compare_runs:
        return {}
    runs = read_runs([settings.run_dir, *settings.compare_runs])
    for name, curve in COMPARED.items():
        save_comparison(runs, curve, folder, name)
    return differences(runs)


def differences(runs: list[Run]) -> dict[str, dict[str, Any]]:
    """Each parameter that differs and each result, by run: name → {run: value}."""
    rows: dict[str, dict[str, Any]] = {}
    given = {run.name: run.training.get("settings", {}) | run.training.get("derived", {}) for run in runs}
    for name in dict.fromkeys(name for values in given.values() for name in values):
        row = {run: values.get(name, "absent") for run, values in given.items()}
        if name != "run_dir" and any(value != next(iter(row.values())) for value in row.values()):
            rows[name] = row
    for name in RESULTS:
        rows[name] = {run.name: run.summary[name] for run in runs}
    for name in ("loss", "eval_loss", "eval_token_accuracy", "perplexity"):
        rows[f"final {name}"] = {run.name: run.summary["final"][name] for run in runs}
    rows["best eval_loss"] = {run.name: (run.summary["best"]["eval_loss"] or {}).get("value") for run in runs}
    return rows


def _names(paths: list[Path]) -> list[str]:
    """The folders' names, with their parents' where two are alike."""
    names = [path.name for path in paths]
    alike = {name for name in names if names.count(name) > 1}
    return [f"{path.parent.name}/{path.name}" if path.name in alike else path.name for path in paths]
