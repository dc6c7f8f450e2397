"""Notebook 01 as a user runs it: all six shapes, and its errors."""

from __future__ import annotations

import ast
import json
from typing import Any

import nbformat
import pytest

from nbutils.core.errors import UserError
from tests.conftest import ROOT
from tests.data.making import SIX, rows_of, write_lines


def executed(**parameters: Any) -> str:
    """Runs the notebook's cells in this process; returns what their last lines show."""
    names: dict[str, Any] = {}
    shown = []
    for cell in nbformat.read(ROOT / "notebooks" / "01_filter_data.ipynb", 4).cells:
        if cell.cell_type == "code":
            *body, last = ast.parse(cell.source).body
            is_value = isinstance(last, ast.Expr)
            exec(compile(ast.Module(body if is_value else [*body, last], []), cell.id, "exec"), names)
            value = eval(compile(ast.Expression(last.value), cell.id, "eval"), names) if is_value else ""
            shown.append(getattr(value, "data", None) or value)
            if "parameters" in cell.metadata.get("tags", []):
                names |= parameters
    return "\n".join(map(str, shown))


def test_samples_of_all_six_shapes_go_through_the_notebook(tmp_path, monkeypatch, capsys):
    datasets: list[Any] = [write_lines(tmp_path / f"{shape}.jsonl", rows_of(shape)) for shape in SIX]
    broken = write_lines(tmp_path / "broken.jsonl", [*rows_of("messages")[:3], b"{<script>alert(1)</script>"])
    monkeypatch.chdir(tmp_path)
    given = {"datasets": [*datasets, {"path": broken}], "eval_fraction": 0.3}
    shown = executed(run_dir=str(tmp_path / "run"), **given)
    data = tmp_path / "run" / "data"
    assert json.loads((data / "stage.json").read_text())["status"] == "done"
    summary = json.loads((data / "summary.json").read_text())
    assert [found["shape"] for found in summary["datasets"]] == [*SIX, "messages"]
    fates = {name: counts["rows"] for name, counts in summary["fates"].items() if counts["rows"]}
    assert fates == {"kept": 60, "malformed": 1, "duplicate": 3}
    files = {str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()}
    figures = {f"figures/{name}{theme}.{kind}" for name in ("fates", "lengths") for theme in ("", "-dark")
               for kind in ("png", "svg")}  # fmt: skip
    assert {*figures, "ledger.parquet", "samples.json", "summary.json", "tokenizer/tokenizer.json"} <= files
    assert not [name for name in files if "partial" in name]
    for words in (*SIX, "malformed", "no JSON", "&lt;|im_start|&gt;", "tokens dropped"):
        assert words in shown
    assert "was not looked for" in capsys.readouterr().out
    assert "<script>" not in shown


def test_a_dataset_of_no_known_shape_stops_with_its_columns(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"note": "once", "label": 1}])
    with pytest.raises(UserError) as error:
        executed(run_dir=str(tmp_path / "run"), datasets=[path])
    for word in (path, "the columns note, label, which fit none of the six", *SIX, "sharegpt"):
        assert word in str(error.value)
    assert json.loads((tmp_path / "run" / "data" / "stage.json").read_text())["status"] != "done"
