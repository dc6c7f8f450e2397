"""Training histories: what counts after a resume, and smoothing and thinning that lose nothing that matters."""

import math

import numpy as np
import pytest

from nbutils.core.history import History, Series, thinned, trend
from tests.metrics.histories import history_rows, session


def test_a_resume_repeats_no_step_and_the_later_of_two_rows_counts():
    again = [row | {"session": 2} for row in history_rows(60)[1:] if row["step"] > 200]
    history = History.of([*history_rows(30), session(2, 200), *again, {**again[-2], "loss": 1.0}])
    assert [(row["step"], row["session"]) for row in history.train] == [(s, 1 + (s > 200)) for s in range(10, 601, 10)]
    assert [row["step"] for row in history.evals] == list(range(0, 601, 100))
    assert history.resumes == [200] and history.train[-1]["loss"] == 1.0


def test_series_hold_numbers_only():
    history = History.of(history_rows(10, peak_memory_gib=None, grad_norm=math.nan))
    assert len(history.series("peak_memory_gib").broken) == 10
    assert len(history.series("grad_norm")) == 0
    assert len(history.series("no such column")) == 0
    assert history.series("learning_rate").last == 0.0


def test_evaluations_over_tokens_and_time():
    history = History.of(history_rows(60))
    assert history.eval_series("eval_loss", x="total_tokens").steps.tolist() == [s * 2000 for s in range(0, 601, 100)]
    assert history.eval_series("eval_loss", x="elapsed").steps[-1] == pytest.approx(54.0)


def test_seconds_add_up_to_the_elapsed_time():
    seconds = History.of(history_rows(60)).seconds
    assert seconds["forward_backward"] == pytest.approx(42.0)
    assert seconds["evaluation"] == pytest.approx(60 * 0.05 + 4.0)  # in rows, before the first and behind the last
    assert sum(seconds.values()) == pytest.approx(54.0 + 4.0)


def test_smoothing_keeps_a_constant_and_passes_over_gaps():
    line = trend(Series.of(np.arange(6.0), np.array([2.0, 2.0, math.nan, 2.0, 2.0, 2.0])))
    assert line.steps.tolist() == [0, 1, 3, 4, 5] and np.allclose(line.values, 2.0)
    rising = np.arange(225.0)
    assert trend(Series.of(rising, rising)).last == pytest.approx(224 - 4, abs=0.01)  # half its span


def test_the_line_follows_a_known_curve_where_rows_stand_close_together_first():
    """Rows as notebook 02 logs them, at 1, 2, 3, 25, 50 …: three at the start hold the line up no more than one."""
    steps = np.r_[1.0, 2.0, 3.0, np.arange(25.0, 1100, 25)]
    values = 3.8 + 4.5 * np.exp(-steps / 40)
    dense, even = (trend(Series.of(steps[kept], values[kept])).values for kept in (steps > 0, steps % 25 < 2))
    assert dense[0] == pytest.approx(values[0])
    assert (values <= dense + 1e-9).all() and (dense[3:] <= even[1:] + 1e-9).all()
    assert (dense - values).max() < 0.5


def test_smoothing_over_places_that_do_not_move_is_still_a_number():
    """Seconds of training as x: two rows may carry the same."""
    assert np.isfinite(trend(Series.of(np.array([0.0, 0, 0, 1, 1, 2]), np.arange(6.0))).values).all()


def test_thinning_keeps_every_spike_and_the_last_point():
    values = np.zeros(100_000)
    values[[54_321, -1]] = 9.0, 0.123
    few = thinned(Series.of(np.arange(100_000.0), values), 1000)
    assert len(few) <= 1000 and few.values.max() == 9.0 and few.values[-1] == 0.123 and few.steps[-1] == 99_999
