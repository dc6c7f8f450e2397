"""The forecast of a run's end and of its sessions, on made-up records."""

from __future__ import annotations

import pytest

from nbutils.train.display import ProgressBar
from nbutils.train.forecast import Course, Forecast, forecast, sentence
from nbutils.train.meters import margin_seconds
from nbutils.train.run import Outlook, line_of
from tests.train.runs import small_settings


def train_row(step: int, seconds: float, evaluation: float = 0.0, checkpoint: float = 0.0) -> dict:
    parts = {"data": 0.1, "forward_backward": seconds - 0.3, "optimizer": 0.2}
    return {"kind": "train", "step": step, "seconds": parts | {"evaluation": evaluation, "checkpoint": checkpoint}}


def first_rows(step_seconds: float = 2.0, first: int = 0, warm_up: float = 9.0) -> list[dict]:
    """Three rows of one step each, the first of them slow."""
    return [train_row(first + 1, warm_up), *(train_row(first + i, step_seconds) for i in (2, 3))]


def test_nothing_is_said_before_the_third_step():
    course = Course(0, 100, 0, 0)
    assert forecast(course, [], 0) is None
    assert forecast(course, [{"kind": "eval", "step": 0, "seconds": 3.0}], 0) is None
    assert forecast(course, first_rows()[:2], 0) is None
    # a resumed session counts its own steps
    assert forecast(Course(50, 100, 0, 0), [train_row(51, 2.0), train_row(52, 2.0)], 0) is None


def test_the_warm_up_step_is_left_out():
    assert forecast(Course(0, 100, 0, 0), first_rows(), 20) == Forecast(pytest.approx(97 * 2.0))


def test_rows_of_many_steps_count_as_many():
    rows = [*first_rows(), train_row(25, 22 * 2.0)]
    assert forecast(Course(0, 100, 0, 0), rows, 0).seconds == pytest.approx(75 * 2.0)


def test_a_row_that_an_earlier_session_began_counts_all_of_its_steps():
    course = Course(410, 500, 0, 0, logged=400)
    assert forecast(course, [train_row(425, 25 * 2.0)], 0).seconds == pytest.approx(75 * 2.0)


def test_evaluations_and_checkpoints_to_come_are_counted_at_what_they_cost():
    course = Course(0, 100, eval_steps=20, checkpoint_steps=50)
    start = {"kind": "eval", "step": 0, "seconds": 3.0}
    # at step 3: evaluations at 20, 40, 60, 80 and the last one; a checkpoint at 50, its cost not known yet
    assert forecast(course, [start, *first_rows()], 0).seconds == pytest.approx(97 * 2 + 5 * 3.0)
    # the evaluation at step 20 (with its samples) stands in the row behind it
    rows = [start, *first_rows(), train_row(20, 17 * 2.0), train_row(40, 20 * 2.0, evaluation=7.0)]
    assert forecast(course, rows, 0).seconds == pytest.approx(60 * 2 + 3 * 7.0)
    rows.append(train_row(60, 20 * 2.0, evaluation=7.0, checkpoint=4.0))
    assert forecast(course, rows, 0).seconds == pytest.approx(40 * 2 + 2 * 7.0)
    two = Course(0, 200, eval_steps=0, checkpoint_steps=50)
    assert forecast(two, rows, 0).seconds == pytest.approx(140 * 2 + 2 * 4.0 + 3.0)  # at 100 and 150


def test_sessions_of_the_budget():
    margin = margin_seconds(0.0, 2.0)
    # 97 steps of 2 s = 194 s left after 20 s
    fits = Course(0, 100, 0, 0, budget=194 + 20 + margin, startup=10)
    assert forecast(fits, first_rows(), 20) == Forecast(pytest.approx(194.0), 1)
    tight = Course(0, 100, 0, 0, budget=194 + 20 + margin - 1, startup=10)
    assert forecast(tight, first_rows(), 20).sessions == 2
    # 60 s a session: 60 - 20 - 5 = 35 s of work now, then 60 - 10 - 5 = 45 s a session for the other 159 s
    short = Course(0, 100, 0, 0, budget=60, startup=10)
    assert margin == 5.0 and forecast(short, first_rows(), 20).sessions == 1 + 4
    hopeless = Course(0, 100, 0, 0, budget=14, startup=10)
    assert forecast(hopeless, first_rows(), 20).sessions == 0


def test_the_sessions_add_up_to_the_work():
    """Simulated: sessions of the budget, each with start-up and margin, end in the number that was forecast."""
    for budget in (40, 61, 90, 133, 400):
        course = Course(0, 100, 0, 0, budget=budget, startup=10)
        found = forecast(course, first_rows(warm_up=2.0), 10 + 3 * 2.0)
        steps, sessions = 0, 0
        while steps < 100:
            clock = 10.0
            while steps < 100 and clock + margin_seconds(0.0, 2.0) <= budget:
                clock, steps = clock + 2.0, steps + 1
            sessions += 1
        assert abs(found.sessions - sessions) <= (1 if sessions > 5 else 0), budget


def test_the_words():
    budget = Course(0, 100, 0, 0, budget=690 * 60, startup=60)
    assert sentence(Course(0, 100, 0, 0), Forecast(200.0)) == "Forecast: about 3 minutes left."
    assert sentence(budget, Forecast(7200.0, 1)) == (
        "Forecast: about 2.0 hours left; it ends in this session of 690 minutes."
    )
    assert sentence(budget, Forecast(72000.0, 2)) == (
        "Forecast: about 20.0 hours left: 2 sessions of 690 minutes, this one included."
    )
    assert "raise budget_minutes" in sentence(Course(0, 100, 0, 0, budget=14), Forecast(200.0, 0))


def events() -> list[dict]:
    rows = [row | {"event": "metric"} for row in [*first_rows(), train_row(10, 14.0)]]
    numbers = {"loss": 2.0, "token_accuracy": 0.5, "learning_rate": 1e-3, "grad_norm": 1.0, "tokens_per_second": 9.0}
    return [{"event": "started", "step": 0, "steps": 10}, *(row | numbers for row in rows)]


def test_the_lines_of_a_run_carry_the_time_left(tmp_path):
    clock = iter(range(0, 1000, 5))
    outlook = Outlook(small_settings(tmp_path, eval_steps=0, budget_minutes=1.0), lambda: float(next(clock)))
    said = [(outlook.behind(event), outlook.first_words()) for event in events()]
    assert said[:3] == [("", "")] * 3
    assert said[3] == (
        "  about 14 seconds left",
        "Forecast: about 14 seconds left; it ends in this session of 1 minute.",
    )
    assert said[4] == ("", "")  # the last step: nothing is left
    assert "loss 2.000" in line_of(events()[1], 10)


def test_the_bar_is_redrawn_in_place_and_only_where_somebody_looks(monkeypatch):
    from nbutils.train import display

    drawn: list[str] = []

    class Handle:
        def update(self, shown):
            drawn.append("again " + shown.data)

    monkeypatch.setattr(display, "display", lambda shown, display_id: drawn.append(shown.data) or Handle())
    monkeypatch.setattr(display, "interactive", lambda: False)
    ProgressBar().update(3, 10, "about 14 seconds left")
    assert drawn == []
    monkeypatch.setattr(display, "interactive", lambda: True)
    bar = ProgressBar()
    bar.update(3, 10, "about 14 seconds left")
    bar.update(10, 10, "about 0 seconds left")
    assert drawn[0].endswith("step 3 of 10 (30%), about 14 seconds left") and 'value="3" max="10"' in drawn[0]
    assert drawn[1].startswith("again ") and drawn[1].endswith("step 10 of 10 (100%)")
