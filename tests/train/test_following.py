"""What notebook 02 shows while it trains, on made-up rows: the forecast of the end and of sessions, the live figure."""

import time

from nbutils.core import charts
from nbutils.core.files import write_jsonl
from nbutils.core.history import History
from nbutils.train import run
from tests.metrics.histories import history_rows, session
from tests.train.program import STARTED
from tests.train.runs import small_settings

(TRAIN_ROW,) = (row for row in history_rows(1) if row["kind"] == "train")


def time_left(*rows, steps=100, budget=0.0):
    """What is said of it after each of these steps, at so many seconds."""
    events = [{"event": "started"} | STARTED | {"steps": steps}]
    events += [{"event": "metric"} | TRAIN_ROW | {"step": step, "elapsed": elapsed} for step, elapsed in rows]
    return [line.partition("tok/s")[2].strip() for _, line in list(run.with_time_left(events, budget))[1:]]


def test_nothing_is_said_before_the_third_step_nor_after_the_last():
    """The first step, a warm-up, took 9 s and each later one 2 s."""
    left = "about 3 minutes left"
    said = time_left((1, 9.0), (2, 11.0), (3, 13.0), (10, 27.0), (100, 207.0))
    assert said == ["", "", left, left, ""]


def test_a_resumed_session_counts_from_its_own_first_row():
    """Of 25 steps in 50 s, not of 450 in 5050 s."""
    assert time_left((425, 5000.0), (450, 5050.0), steps=500) == ["", "about 2 minutes left"]


def test_sessions_of_the_budget_are_said_once(monkeypatch):
    """194 s are left after 20 s."""
    monkeypatch.setenv("NBUTILS_STARTED", str(time.time() - 20))
    _, first, second = time_left((1, 9.0), (3, 13.0), (5, 17.0), budget=2.0)
    assert "Forecast: 2 sessions of 2 minutes, this one included." in first and "Forecast" not in second


def test_the_figure_of_a_resumed_run_shows_its_earlier_curve_and_the_planned_steps(tmp_path, monkeypatch):
    earlier, folder = history_rows(30), tmp_path / "train"
    later = [row for row in history_rows(60)[1:] if row["step"] > 300]
    drawn = []

    def events(*_):
        begin = session(2, 300)
        folder.mkdir()
        write_jsonl(folder / "metrics.jsonl", [*earlier, begin])
        yield {"event": "metric"} | begin  # the worker's order: the row of the session, then the announcement
        yield {"event": "started"} | STARTED | {"step": 300, "steps": 900}
        yield from ({"event": "metric"} | row for row in later)
        yield {"event": "paused", "step": 600, "steps": 900}

    monkeypatch.setattr(run, "events_of", events)
    monkeypatch.setattr(charts.LiveFigure, "update", lambda self, rows, **_: drawn.append((self.steps, list(rows))))
    assert run.run_training(small_settings(tmp_path), folder)["fraction"] == 0.6667
    steps, rows = drawn[-1]
    history = History.of(rows)
    assert steps == 900 and history.resumes == [300]
    assert [row["step"] for row in history.train] == list(range(10, 601, 10))


def test_which_model_was_kept_out_of_how_many_and_what_the_last_was():
    rows = history_rows(30, eval_loss=lambda f: 4.0 + abs(f - 2 / 3))
    words = run.which_was_kept(rows, 200)
    assert all(said in words for said in ("step 200", "3 evaluation", "4.000", "step 300", "4.333", "train/last"))
    assert "300" not in run.which_was_kept(rows, 200).partition(":")[0] and not run.which_was_kept(rows[:4], 0)
