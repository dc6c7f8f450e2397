"""Notebook 06 as papermill runs it, on a made-up run."""

from __future__ import annotations

import papermill

from nbutils.core.files import read_json


def test_notebook_publishes_a_run(root, published, tmp_path):
    out = tmp_path / "out.ipynb"
    given = {"run_dir": str(published.run), "parity_replies": 4, "parity_tokens": 16}
    papermill.execute_notebook(root / "notebooks" / "06_publish.ipynb", out, given, progress_bar=False)
    record = read_json(published.run / "publish" / "stage.json")
    assert record["status"] == "done" and record["facts"]["parity"]["replies"] == 4
    assert {"README.md", "model.safetensors", "figures/loss.png"} <= set(record["outputs"])
    shown = out.read_text(encoding="utf-8")
    assert "reply_tokens" in shown and "no secret found" in shown
