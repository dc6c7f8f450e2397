"""The live figure of notebook 02: it spans the planned steps, and a resumed run keeps its earlier curve."""

from __future__ import annotations

import json

from nbutils.core import charts
from nbutils.core.history import History
from nbutils.train import run
from tests.metrics.histories import history_rows, session
from tests.train.runs import small_settings


def test_a_resumed_run_shows_its_earlier_curve_and_the_planned_steps(tmp_path, monkeypatch, capsys):
    earlier, folder = history_rows(30), tmp_path / "train"
    later = [row for row in history_rows(60)[1:] if row["step"] > 300]
    started = {"event": "started", "step": 300, "steps": 900, "world_size": 2, "device": "cpu", "precision": "fp32",
               "microbatches_per_step": 1.0}  # fmt: skip
    drawn = []

    def events(*_):
        begin = session(2, 300)
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*earlier, begin]))
        yield {"event": "metric"} | begin  # the worker's order: the row of the session, then the announcement
        yield started
        yield from ({"event": "metric"} | row for row in later)
        yield {"event": "paused", "step": 600, "steps": 900}

    monkeypatch.setattr(run, "events_of", events)
    monkeypatch.setattr(charts.LiveFigure, "update", lambda self, rows, **_: drawn.append((self.steps, list(rows))))
    outcome = run.run_training(small_settings(tmp_path), folder)
    assert (outcome["status"], outcome["step"], outcome["fraction"]) == ("paused", 600, 0.6667)
    assert "about 27 seconds left" in capsys.readouterr().out.splitlines()[-3]  # 300 steps of 0.09 s
    steps, rows = drawn[-1]
    history = History.of(rows)
    assert steps == 900 and history.resumes == [300]
    assert [row["step"] for row in history.train] == list(range(10, 601, 10))
