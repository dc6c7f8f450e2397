"""The end of a session on Kaggle: space, failures, the forecast."""

from __future__ import annotations

import os
from contextlib import nullcontext

import nbformat
import pytest
from papermill import PapermillExecutionError, execute_notebook

from nbutils.core.files import append_jsonl, write_json, write_text
from nbutils.core.run.layout import Run
from nbutils.kaggle.carry_over import keep_under, used
from nbutils.kaggle.notebook_session import forecast
from tests.kaggle.made_stages import checkpoint, stage_at

SOURCE = {"rows": 4_600, "rows_in_source": 460_000}


def test_what_nobody_goes_on_from_is_dropped_first(tmp_path):
    folder = stage_at(tmp_path / "runs" / "mine", "paused")
    for step in (10, 20):
        checkpoint(folder, step)
    for name in ("checkpoints/step-000030.partial", "checkpoints/damaged-step-000005.partial", "../../.mirror-x"):
        (folder / name).mkdir()
        (folder / name / "w").write_bytes(b"x" * 100_000)
    os.link(folder / "checkpoints/step-000020/weights", folder / "../../.mirror-x/weights")
    before = used(tmp_path)
    assert before == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) - 100
    assert len(keep_under(tmp_path, Run(folder.parent), limit=50_000)) == 3
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000010", "step-000020"]


@pytest.mark.parametrize("status,left", [("paused", ["step-000020"]), ("done", [])])
def test_the_output_is_kept_below_its_limit(tmp_path, status, left):
    folder = stage_at(tmp_path / "runs" / "mine", status)
    for step in (10, 20):
        checkpoint(folder, step)
    assert keep_under(tmp_path, Run(folder.parent), limit=10**6) == []
    dropped = keep_under(tmp_path, Run(folder.parent), limit=100)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == left
    assert dropped[0] == "runs/mine/train/checkpoints/step-000010" and used(tmp_path) > 0


@pytest.mark.parametrize("word,shown", [("keep", "ValueError: keep"), ("fatal", '"ename": "ValueError"')])
def test_a_kept_failure_is_red_and_costs_no_version(tmp_path, word, shown):
    """Guard in a real kernel, executed by papermill. A failure that nobody keeps is one, and no cell is passed over."""
    cells = [
        "from nbutils.kaggle.guard import Guard\nguard = Guard(get_ipython(), lambda error: 'keep' in str(error))",
        "'a value'",
        f"raise ValueError('{word}')",
        "print('never' + 'reached')",
        "# session.resume(\nprint('begun' + 'again')",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(book, tmp_path / "in.ipynb")
    kept = word == "keep"
    with nullcontext() if kept else pytest.raises(PapermillExecutionError):
        execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", kernel_name="python3", progress_bar=False)
    out = (tmp_path / "out.ipynb").read_text()
    assert shown in out and "neverreached" not in out and "'a value'" in out
    assert ("begunagain" in out) is kept is ("passed over" in out.replace("print('passed over')", ""))


def test_the_forecast_counts_all_of_the_data_and_all_passes(tmp_path):
    run = Run(tmp_path)
    assert forecast(run) == ""
    write_json(run.rows / "summary.json", {"train": {"tokens": 4_000_000}, "datasets": [SOURCE]})
    write_json(run.training / "settings.json", {"settings": {"epochs": 3}})
    log = run.training / "metrics.jsonl"
    write_text(log, '{"kind": "eval"}\n')
    assert forecast(run) == ""
    for speed in (1, 1, 1, 20_000, 22_000, 24_000):
        append_jsonl(log, {"kind": "train", "tokens_per_second": speed})
    assert "At 22,000 tokens a second, the training steps of the full run (1,200.0 million tokens)" in forecast(run)
    assert "15.2 GPU-hours in 2 sessions" in forecast(run)
