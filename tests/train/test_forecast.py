"""The forecast of a run's end and of its sessions, on made-up rows."""

from __future__ import annotations

import time

import pytest

from nbutils.train.run import line_of, with_time_left

STARTED = {"world_size": 2, "device": "cpu", "precision": "fp32", "microbatches_per_step": 1.0}


def train_row(step: int, elapsed: float) -> dict:
    numbers = {"loss": 2.0, "token_accuracy": 0.5, "learning_rate": 1e-3, "grad_norm": 1.0, "tokens_per_second": 9.0}
    return {"event": "metric", "kind": "train", "step": step, "elapsed": elapsed, **numbers}


def said(budget: float, steps: int, *rows: dict) -> list[str]:
    """What is said of the time left, row by row."""
    events = [{"event": "started", "steps": steps, "step": 0} | STARTED, *rows]
    return [line.partition("tok/s")[2].strip() for _, line in list(with_time_left(events, budget))[1:]]


def test_nothing_is_said_before_the_third_step():
    """The first step, a warm-up, took 9 s and each later one 2 s."""
    rows = [train_row(1, 9.0), train_row(2, 11.0), train_row(3, 13.0), train_row(10, 27.0), train_row(100, 207.0)]
    left = "about 3 minutes left"
    assert said(0.0, 100, *rows) == ["", "", left, left, ""]  # at the last nothing is left
    assert "loss 2.000" in line_of(rows[0], 100)


def test_a_resumed_session_counts_from_its_own_first_row():
    """Of 25 steps in 50 s, not of 450 in 5050 s."""
    rows = [train_row(425, 5000.0), train_row(450, 5050.0)]
    assert said(0.0, 500, *rows) == ["", "about 2 minutes left"]


@pytest.mark.parametrize(
    "minutes,expected", [(5.0, "1 session of 5 minutes, this one"), (2.0, "2 sessions of 2 minutes, this one")]
)
def test_sessions_of_the_budget_are_said_once(monkeypatch, minutes, expected):
    """194 s are left after 20 s."""
    monkeypatch.setenv("NBUTILS_STARTED", str(time.time() - 20))
    lines = said(minutes, 100, train_row(1, 9.0), train_row(3, 13.0), train_row(5, 17.0))
    assert f"Forecast: {expected} included." in lines[1] and "Forecast" not in lines[2]
