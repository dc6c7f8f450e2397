"""Notebook 01 as a user runs it, on all six shapes."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from nbutils.core.notebooks import code_cells
from tests.conftest import ROOT
from tests.data.making import SIX, rows_of, write_lines


def executed(notebook: Path, **parameters: Any) -> str:
    """Runs the notebook's cells in this process; returns what their last lines show."""
    names: dict[str, Any] = {}
    shown = []
    for cell in code_cells(notebook):
        body = ast.parse(cell["source"])
        if isinstance(last := body.body[-1], ast.Expr):
            body.body[-1] = ast.Assign([ast.Name("shown_last", ast.Store())], last.value)
        exec(compile(ast.fix_missing_locations(body), "cell", "exec"), names)
        value = names.pop("shown_last", "")
        shown.append(str(getattr(value, "data", None) or value))
        if "parameters" in cell["tags"]:
            names |= parameters
    return "\n".join(shown)


def test_samples_of_all_six_shapes_go_through_the_notebook(tmp_path, monkeypatch, capsys):
    datasets: list[Any] = [write_lines(tmp_path / f"{shape}.jsonl", rows_of(shape)) for shape in SIX]
    broken = write_lines(tmp_path / "broken.jsonl", [*rows_of("messages")[:3], b"{<script>alert(1)</script>"])
    monkeypatch.chdir(tmp_path)
    given = {"datasets": [*datasets, {"path": broken}], "run_dir": str(tmp_path / "run"), "eval_fraction": 0.3}
    shown = executed(ROOT / "notebooks" / "01_filter_data.ipynb", **given)
    record, summary = (json.loads((tmp_path / "run" / "data" / f"{name}.json").read_text())
                       for name in ("stage", "summary"))  # fmt: skip
    assert record["status"] == "done"
    assert [found["shape"] for found in summary["datasets"]] == [*SIX, "messages"]
    fates = {name: counts["rows"] for name, counts in summary["fates"].items() if counts["rows"]}
    assert fates == {"kept": 60, "malformed": 1, "duplicate": 3}
    for words in (*SIX, "malformed", "no JSON", "&lt;|im_start|&gt;", "tokens dropped"):
        assert words in shown
    assert "was not looked for" in capsys.readouterr().out
    assert "<script>" not in shown
