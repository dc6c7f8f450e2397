"""Notebook 01 as a user runs it, on all six shapes."""

import papermill

from nbutils.core.files import read_json
from nbutils.data.shapes import SHAPES
from tests import forked_kernels
from tests.conftest import ROOT
from tests.data.making import write_lines
from tests.data.test_containers import rows_of


def test_samples_of_all_six_shapes_go_through_the_notebook(tmp_path, monkeypatch):
    shapes = [shape.name for shape in SHAPES]
    datasets = [
        write_lines(tmp_path / f"{name}.jsonl", rows_of(name.replace("sharegpt", "conversation"))) for name in shapes
    ]
    datasets += [write_lines(tmp_path / "broken.jsonl", [*rows_of("messages")[:3], b"{<script>alert(1)</script>"])]
    given = {"datasets": datasets, "run_dir": str(tmp_path / "run"), "eval_fraction": 0.3}
    forked_kernels.use(monkeypatch)
    notebook = ROOT / "notebooks" / "01_filter_data.ipynb"
    executed = papermill.execute_notebook(notebook, None, given, kernel_name="python3", progress_bar=False)
    shown = str([cell.get("outputs") for cell in executed.cells])
    summary = read_json(tmp_path / "run" / "data" / "summary.json")
    assert [found["shape"] for found in summary["datasets"]] == [*shapes, "messages"]
    fates = {name: counts["rows"] for name, counts in summary["fates"].items() if counts["rows"]}
    assert fates == {"kept": 60, "malformed": 1, "duplicate": 3}
    for words in ("malformed", "no JSON", "&lt;|im_start|&gt;", "tokens dropped", "was not looked for"):
        assert words in shown
    assert "<script>" not in shown
