"""Notebook 01 as a user runs it: all five shapes, and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from tests.data.making import FIVE, rows_of, write_lines

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "01_filter_data.ipynb"


def execute(folder: Path, **parameters: Any) -> nbformat.NotebookNode:
    """Runs the notebook from another working directory; returns it executed."""
    out = folder / "out.ipynb"
    try:
        papermill.execute_notebook(NOTEBOOK, out, parameters, cwd=str(folder), progress_bar=False)
    except DeadKernelError:  # pragma: no cover
        pytest.fail("the kernel died")
    return nbformat.read(out, 4)


def text_of(notebook: nbformat.NotebookNode) -> str:
    """All that the notebook shows, as text."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            found.append(output.get("text") or data.get("text/html") or data.get("text/plain") or "")
    return "\n".join(found)


def test_samples_of_all_five_shapes_go_through_the_notebook(tmp_path):
    datasets: list[Any] = [write_lines(tmp_path / f"{shape}.jsonl", rows_of(shape)) for shape in FIVE]
    broken = write_lines(tmp_path / "broken.jsonl", [*rows_of("messages")[:3], b"{<script>alert(1)</script>"])
    notebook = execute(
        tmp_path, run_dir=str(tmp_path / "run"), datasets=[*datasets, {"path": broken}], eval_fraction=0.3
    )
    data = tmp_path / "run" / "data"
    assert json.loads((data / "stage.json").read_text())["status"] == "done"
    summary = json.loads((data / "summary.json").read_text())
    assert [found["shape"] for found in summary["datasets"]] == [*FIVE, "messages"]
    assert {name: c["rows"] for name, c in summary["fates"].items() if c["rows"]} == {
        "kept": 50,
        "malformed": 1,
        "duplicate": 3,
    }
    files = {str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()}
    figures = {f"figures/{name}{theme}.{kind}" for name in ("fates", "lengths") for theme in ("", "-dark")
               for kind in ("png", "svg")}  # fmt: skip
    assert figures <= files
    assert {"ledger.parquet", "samples.json", "summary.json", "tokenizer/tokenizer.json"} <= files
    assert not [name for name in files if "partial" in name]
    shown = text_of(notebook)
    for words in (*FIVE, "malformed", "no JSON", "&lt;|im_start|&gt;", "tokens dropped", "was not looked for"):
        assert words in shown
    assert "<script>" not in shown


def test_a_dataset_of_no_known_shape_stops_with_its_columns(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"note": "once", "label": 1}])
    with pytest.raises(PapermillExecutionError) as error:
        execute(tmp_path, run_dir=str(tmp_path / "run"), datasets=[path])
    assert "has the columns note, label, which fit none of the six shapes" in str(error.value)
    assert json.loads((tmp_path / "run" / "data" / "stage.json").read_text())["status"] != "done"
