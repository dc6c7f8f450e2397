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


@dataclass(frozen=True)
class Compared:
    """One run of a comparison: its name here, folder, history, summary, and the parameters of its data and training."""

    name: str
    folder: Path
    history: History
    summary: dict[str, Any]
    parameters: dict[str, Any]


def read_runs(folders: Sequence[str | Path]) -> list[Compared]:
    """The runs in a list of run folders, each named by the end of its path that tells it apart.

    UserError where one is named twice, or where they were not measured on the same evaluation set.
    """
    paths = [Path(os.path.normpath(resolve(folder))) for folder in folders]
    runs = []
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"The run {path.name} is in the comparison twice: name it once, as run_dir or in "
                            "compare_runs.")  # fmt: skip
        tails = (path.parts[-depth:] for depth in range(1, len(path.parts) + 1))
        name = next(tail for tail in tails if sum(other.parts[-len(tail) :] == tail for other in paths) == 1)
        history, training = read_history(path), read_training_settings(path)
        parameters = (Run(path).record(maker("rows").name) or {}).get("parameters", {})
        parameters |= training.get("settings", {}) | training.get("derived", {})
        runs.append(Compared(str(Path(*name)), path, history, summarise(history, training), parameters))
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
    """Each parameter of all runs that differs and each result, by run: name → {run: value}; empty without runs."""
    if not runs:
        return {}
    rows: dict[str, dict[str, Any]] = {}
    for name, first in runs[0].parameters.items():
        row = {run.name: run.parameters[name] for run in runs if name in run.parameters}
        if name != "run_dir" and len(row) == len(runs) and any(value != first for value in row.values()):
            rows[name] = row
    for name in ("steps", "total_tokens", "hours", "tokens_per_second"):
        rows[name] = {run.name: run.summary[name] for run in runs}
    for name in ("loss", "eval_loss", "eval_token_accuracy", "perplexity"):
        rows[f"final {name}"] = {run.name: run.summary["final"][name] for run in runs}
    return rows | {"best eval_loss": {run.name: (run.summary["best"]["eval_loss"] or {}).get("value") for run in runs}}
