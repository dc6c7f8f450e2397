"""Several runs side by side, in numbers: what differs in parameters and results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import resolve
from nbutils.core.history import History
from nbutils.core.run.layout import Run
from nbutils.core.stages import maker
from nbutils.metrics.summary import read_history, read_training_settings, summarise

RESULTS = ("steps", "total_tokens", "hours", "tokens_per_second")


@dataclass(frozen=True)
class Compared:
    """One run of a comparison: its name here, folder, history, training settings, summary, parameters of its data."""

    name: str
    folder: Path
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


def read_runs(folders: Sequence[str | Path]) -> list[Compared]:
    """The runs in a list of run folders; UserError where they were not measured on the same evaluation set."""
    runs = []
    for name, path in named_runs(folders).items():
        history, training = read_history(path), read_training_settings(path)
        data = (Run(path).record(maker("rows").name) or {}).get("parameters", {})
        runs.append(Compared(name, path, history, training, summarise(history, training), data))
    for run in runs:
        if not run.summary["eval_hash"]:
            raise UserError(
                f"The run '{run.name}' cannot be compared: its train/settings.json names no evaluation set "
                "(eval_hash); run its notebooks 01 and 02 again, or leave it out of compare_runs."
            )
        first = runs[0]
        if run.summary["eval_hash"] != first.summary["eval_hash"]:
            raise UserError(
                f"The runs '{first.name}' and '{run.name}' cannot be compared: their evaluation sets differ "
                f"(hashes {str(first.summary['eval_hash'])[:12]} and {str(run.summary['eval_hash'])[:12]}); give both "
                "the same datasets, split_seed, max_length and base model, or leave one out of compare_runs."
            )
    return runs


def differences(runs: list[Compared]) -> dict[str, dict[str, Any]]:
    """Each parameter that differs and each result, by run: name → {run: value}; empty where there are no runs."""
    if not runs:
        return {}
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
