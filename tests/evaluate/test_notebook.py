"""Notebook 04 runs from top to bottom on a small run, and leaves the files that later stages read."""

from __future__ import annotations

from pathlib import Path

import nbformat
import papermill

from nbutils.core.files import read_json, read_jsonl
from nbutils.core.notebooks import parameters
from nbutils.evaluate.settings import EvaluateSettings
from tests.evaluate.runs import SMALL, made_up_run


def test_the_parameters_cell_is_the_settings(root: Path):
    found = parameters(root / "notebooks" / "04_evaluate.ipynb")
    assert set(found) == set(EvaluateSettings.model_fields)
    EvaluateSettings.checked({name: parameter.default for name, parameter in found.items()})


def test_the_notebook_runs_and_writes_what_others_read(root: Path, tmp_path: Path):
    run = made_up_run(tmp_path / "run")
    executed = tmp_path / "executed.ipynb"
    given = {**SMALL, "run_dir": str(run), "cache_dir": str(tmp_path / "cache")}
    papermill.execute_notebook(
        root / "notebooks" / "04_evaluate.ipynb", executed, given, kernel_name="python3", progress_bar=False
    )
    folder = run / "evaluate"
    assert read_json(folder / "stage.json")["status"] == "done"
    found = read_json(folder / "results.json")
    assert {s["model"] for s in found["scores"]} == {"base", "run"} and found["behaviour"]["models"]
    assert len(read_jsonl(folder / "samples.jsonl")) == 20
    assert (folder / "comparison.md").read_text().startswith("# Comparison")
    assert {p.name for p in (folder / "items").iterdir()} == {
        f"{model}--{task}.parquet" for model in ("base", "run") for task in SMALL["tasks"]
    }
    outputs = [o for cell in nbformat.read(executed, 4).cells for o in cell.get("outputs", [])]
    assert not [o for o in outputs if o.get("name") == "stderr"], "no bars and warnings stay on the page"
