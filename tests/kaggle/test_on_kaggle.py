"""The end of a session on Kaggle: space, failures, the forecast."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nbutils.core.run.layout import Run
from nbutils.kaggle.environment import keep_under, used
from nbutils.kaggle.forecast import forecast
from tests.kaggle.made_stages import checkpoint, stage_at


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


def test_a_kept_failure_is_red_and_costs_no_version(tmp_path):
    """Guard in a real kernel, executed by papermill. In the editor a failure is one, and no cell is passed over."""
    import nbformat

    keep = "lambda error: 'keep' in str(error)"
    cells = [
        f"from nbutils.kaggle.guard import Guard\nguard = Guard(get_ipython(), editor={{editor}})\nguard.watch({keep})",
        "'a value'",
        "raise ValueError('{}')",
        "print('never' + 'reached')",
        "# session.resume(\nprint('begun' + 'again')",
    ]
    red, plain = "ValueError: keep", '"ename": "ValueError"'
    for word, editor, status, shown in [("keep", False, 0, red), ("fatal", False, 1, plain), ("keep", True, 1, plain)]:
        sources = [source.replace("{}", word).replace("{editor}", str(editor)) for source in cells]
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        nbformat.write(book, tmp_path / f"{word}.ipynb")
        command = [sys.executable, "-m", "papermill", f"{word}.ipynb", "out.ipynb", "-k", "python3"]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        out = (tmp_path / "out.ipynb").read_text()
        assert ran.returncode == status, ran.stderr
        assert shown in out and "neverreached" not in out and "'a value'" in out
        assert ("begunagain" in out) is (status == 0)
        assert ("passed over" in out.replace("print('passed over')", "")) is (status == 0)


def test_the_forecast_counts_all_of_the_data_and_all_passes():
    rows = [{"kind": "train", "tokens_per_second": speed} for speed in (1, 1, 1, 20_000, 22_000, 24_000)]
    summary = {"train": {"tokens": 4_000_000}, "datasets": [{"rows": 4_600, "rows_in_source": 460_000}]}
    found = forecast([{"kind": "session"}, *rows], summary, epochs=3)
    assert all(words in found for words in ("22,000 tokens a second", "1,200.0 million tokens", "training steps"))
    assert "15.4 GPU-hours in 2 session(s)" in found and "1 week(s)" in found
    assert "Evaluations on the way and notebook 04 come on top" in found
    rows.append({"kind": "eval", "seconds": 30.0})
    found = forecast(rows, summary, epochs=3, notebook_seconds=90.0)
    assert "(here 30 s each) and notebook 04 (here 90 s) come on top" in found
    assert forecast([], summary, epochs=3) == ""
