"""Notebook 06 on a made-up run: its cells in this process, and the reader of the published folder in another."""

from __future__ import annotations

from nbutils.core.files import read_json
from tests.cells import run_cells


def test_notebook_publishes_a_run(root, spare, capsys):
    names = run_cells(root / "notebooks" / "06_publish.ipynb", run_dir=str(spare), parity_replies=4, parity_tokens=16)
    record = read_json(spare / "publish" / "stage.json")
    assert record["status"] == "done" and record["facts"]["parity"]["replies"] == 4
    assert {"README.md", "model.safetensors", "figures/loss.png"} <= set(record["outputs"])
    said = capsys.readouterr().out
    assert "tokens of 4 greedy replies" in said and "no secret found" in said and "Not pushed" in said
    assert names["card"] == (spare / "publish" / "README.md").read_text(encoding="utf-8")
