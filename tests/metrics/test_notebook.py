"""Notebook 03 as papermill runs it, on a made-up history."""

from __future__ import annotations

import papermill

from nbutils.core.files import read_json
from tests.metrics.histories import history_rows, write_training


def test_notebook_runs_and_lists_its_files(root, tmp_path):
    run = write_training(tmp_path / "run", history_rows(60))
    write_training(tmp_path / "other", history_rows(40), learning_rate=0.01)
    out = tmp_path / "out.ipynb"
    given = {"run_dir": str(run), "compare_runs": [str(tmp_path / "other")]}
    papermill.execute_notebook(root / "notebooks" / "03_plot_metrics.ipynb", out, given, progress_bar=False)
    record = read_json(run / "metrics" / "stage.json")
    assert record["status"] == "done"
    assert {"summary.json", "figures/loss.png", "figures/loss-dark.svg", "figures/compare_loss.png"} <= set(
        record["outputs"]
    )
    shown = out.read_text(encoding="utf-8")
    assert "application/vnd.plotly.v1+json" in shown and "Nothing stands out" in shown
