"""Several runs side by side: their curves over one another, and what differs in parameters and results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbutils.core.canvas import THEMES, WIDTH, label_ends, new_figure, png, svg
from nbutils.core.errors import UserError
from nbutils.core.figures import ACCURACY, LOSS, Curve, draw_runs
from nbutils.core.files import replaced, resolve
from nbutils.core.history import History
from nbutils.core.record import stage_record
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
    """One run of a comparison: its name here, history, training settings, summary, and the data stage's parameters."""

    name: str
    history: History
    training: dict[str, Any]
    summary: dict[str, Any]
    data: dict[str, Any]


def named_runs(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Run folders by the end of their path that tells them apart; UserError where one is named twice."""
    paths = [Path(os.path.normpath(resolve(folder))) for folder in folders]
    named = {}
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"The run {path.name} stands twice in the comparison: name it once, as run_dir or in "
                            "compare_runs.")  # fmt: skip
        tails = (path.parts[-depth:] for depth in range(1, len(path.parts) + 1))
        alone = (t for t in tails if all(other == path or other.parts[-len(t) :] != t for other in paths))
        named[str(Path(*next(alone)))] = path
    return named


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in a list of run folders; UserError where they were not measured on the same evaluation set."""
    runs = []
    for name, path in named_runs(folders).items():
        history, training = read_history(path), read_training_settings(path)
        data = (stage_record(path, "data") or {}).get("parameters", {})
        runs.append(Run(name, history, training, summarise(history, training), data))
    first = runs[0]
    for run in runs:
        if not run.summary["eval_hash"]:
            raise UserError(
                f"The run '{run.name}' cannot be compared: its train/settings.json names no evaluation set "
                "(eval_hash); run its notebooks 01 and 02 again, or leave it out of compare_runs."
            )
        if run.summary["eval_hash"] != first.summary["eval_hash"]:
            raise UserError(
                f"The runs '{first.name}' and '{run.name}' cannot be compared: their evaluation sets differ "
                f"(hashes {str(first.summary['eval_hash'])[:12]} and {str(run.summary['eval_hash'])[:12]}); give both "
                "the same datasets, split_seed, max_length and base model, or leave one out of compare_runs."
            )
    return runs


def comparison_figure(runs: list[Run], curve: Curve, *, theme: str = "light") -> Figure:
    """Evaluation (markers) and training curves of all runs, by steps, tokens and time side by side, over one legend."""
    from matplotlib.ticker import EngFormatter, PercentFormatter

    height = 3.7
    figure, panels = new_figure(1, 3, theme=theme, width=WIDTH * 1.25, height=height)
    ends = []
    for axes, (x, label) in zip(panels, OVER.items(), strict=True):
        entries, finals = draw_runs(axes, {run.name: run.history for run in runs}, curve, x=x, theme=theme)
        ends.append(finals)
        axes.set_xlabel(label, fontsize=9)
        axes.set_title(curve.title if axes is panels[0] else "", loc="left", fontsize=10, color=THEMES[theme].ink)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if curve.form.endswith("%}"):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    columns = min(len(entries), 6 if max(len(str(entry.get_label())) for entry in entries) < 28 else 3)
    rows = -(-len(entries) // columns)
    figure.subplots_adjust(bottom=(0.55 + 0.22 * rows) / height)
    for axes, finals in zip(panels, ends, strict=True):  # only now: how far labels lie apart depends on the height
        label_ends(axes, finals, curve.form)
    figure.legend(handles=entries, loc="lower left", ncols=columns, fontsize=8, frameon=False,
                  labelcolor=THEMES[theme].ink, bbox_to_anchor=(0.05, 0.0))  # fmt: skip
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
    filtered = all(run.data for run in runs)  # a run of which only the training was kept tells nothing of its data
    given = {
        run.name: (run.data if filtered else {}) | run.training.get("settings", {}) | run.training.get("derived", {})
        for run in runs
    }
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
