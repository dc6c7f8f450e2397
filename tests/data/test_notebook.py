"""Notebook 01 as a user runs it, on all six shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from nbutils.core.notebooks import code_cells
from tests.conftest import ROOT
from tests.data.making import write_lines
from tests.data.test_containers import rows_of


def executed(notebook: Path, **parameters: Any) -> str:
    """Runs the notebook's cells in this process; returns what their last lines show."""
    shell, shown = InteractiveShell(), []
    for cell in code_cells(notebook):
        done = shell.run_cell(cell["source"])
        done.raise_error()
        shown.append(str(getattr(done.result, "data", None) or done.result))
        if "parameters" in cell["tags"]:
            shell.push(parameters)
    return "\n".join(shown)


SHAPES = {
    "messages": "messages", "conversation": "sharegpt", "alpaca": "alpaca", "completion": "completion",
    "preference": "preference", "text": "text",
}  # fmt: skip


def test_samples_of_all_six_shapes_go_through_the_notebook(tmp_path, monkeypatch, capsys):
    datasets: list[Any] = [write_lines(tmp_path / f"{shape}.jsonl", rows_of(shape)) for shape in SHAPES]
    broken = write_lines(tmp_path / "broken.jsonl", [*rows_of("messages")[:3], b"{<script>alert(1)</script>"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    given = {"datasets": [*datasets, {"path": broken}], "run_dir": str(tmp_path / "run"), "eval_fraction": 0.3}
    shown = executed(ROOT / "notebooks" / "01_filter_data.ipynb", **given)
    record, summary = (json.loads((tmp_path / "run" / "data" / f"{name}.json").read_text())
                       for name in ("stage", "summary"))  # fmt: skip
    assert record["status"] == "done"
    assert [found["shape"] for found in summary["datasets"]] == [*SHAPES.values(), "messages"]
    fates = {name: counts["rows"] for name, counts in summary["fates"].items() if counts["rows"]}
    assert fates == {"kept": 60, "malformed": 1, "duplicate": 3}
    for words in ("malformed", "no JSON", "&lt;|im_start|&gt;", "tokens dropped"):
        assert words in shown
    assert "was not looked for" in capsys.readouterr().out
    assert "<script>" not in shown
