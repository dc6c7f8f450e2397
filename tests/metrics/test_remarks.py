"""Remarks on made-up histories: each finds what it is for, and a sound run gets none."""

from __future__ import annotations

import math
import random
import re

import pytest

from nbutils.core.history import History
from nbutils.metrics.remarks import remarks
from tests.metrics.histories import SECONDS, falling, history_rows


def kinds(rows, planned=None) -> dict[str, str]:
    return {remark["kind"]: remark["text"] for remark in remarks(History.of(rows), planned)}


@pytest.mark.parametrize("n", [1, 5, 60, 500])
def test_a_sound_run_gets_no_remark(n):
    assert kinds(history_rows(n), planned=n * 10) == {}


def test_overfitting():
    rows = history_rows(100, eval_loss=lambda f: falling(f) if f < 0.5 else falling(0.5) + (f - 0.5))
    remark = kinds(rows)["overfitting"]
    assert "lowest at step 500 (" in remark and f"rose to {falling(0.5) + 0.5:.3f}" in remark


def test_rising_evaluation_loss_with_rising_training_loss_is_no_overfitting():
    def rising(f):
        return 4 + f

    assert "overfitting" not in kinds(history_rows(100, loss=rising, eval_loss=rising))


def test_divergence():
    remark = kinds(history_rows(100, loss=lambda f: falling(f) if f < 0.7 else 9.0))["divergence"]
    low, step, end = map(float, re.search(r"was (.*) at step (.*) and ended at (\d+\.\d+)", remark).groups())
    assert end > 8 > low and 500 <= step <= 720


def test_too_high_a_learning_rate():
    rows = history_rows(100)
    for row in rows:
        if row["kind"] == "train" and row["step"] in (300, 500, 700, 900):
            row["grad_norm"], row["loss"] = 30.0, row["loss"] + 2
    remark = kinds(rows)["learning_rate_too_high"]
    assert "jumped together 4 times" in remark and "(norm 30.0, " in remark


def test_the_fall_at_the_start_is_no_spike():
    """As the demo's: three rows before the norm has settled, each far above what follows."""
    rows = history_rows(30, noise=0.0)
    first = [row for row in rows if row["kind"] == "train"][:4]
    for row, norm, loss in zip(first, (4.1, 4.0, 3.9, 2.0), (8.5, 8.4, 8.2, 7.0), strict=True):
        row["grad_norm"], row["loss"] = norm, loss
    assert kinds(rows) == {}


def test_high_norms_without_a_jump_of_the_loss_are_no_remark():
    rows = history_rows(100)
    for row in rows:
        if row["kind"] == "train" and row["step"] % 100 == 0:
            row["grad_norm"] = 30.0
    assert kinds(rows) == {}


def test_not_a_number():
    remark = kinds(history_rows(100, loss=lambda f: math.nan if f > 0.9 else falling(f)))["not_a_number"]
    assert "at step 910 (10 rows" in remark


def test_one_bad_row_is_said_to_be_one():
    rows = history_rows(100)
    rows[50]["loss"] = math.nan
    text = kinds(rows)["not_a_number"]
    assert f"at step {rows[50]['step']} (1 row in all)" in text


def test_unfinished_schedule():
    assert "600 of 1000" in kinds(history_rows(60), planned=1000)["unfinished_schedule"]


def test_starved_data_loader():
    remark = kinds(history_rows(60, seconds=SECONDS | {"data": 0.4}))["starved_data_loader"]
    assert f"{0.4 / 1.2:.0%} of the time" in remark


def test_skipped_steps():
    assert kinds(history_rows(60, skipped_steps=120))["skipped_steps"].startswith("120 of 600")
    assert "skipped_steps" not in kinds(history_rows(60, skipped_steps=3))


def test_no_evaluation():
    assert "no_evaluation" in kinds(history_rows(60, eval_loss=None))


def test_noise_alone_raises_no_remark():
    """Two hundred sound runs with noise: at most one is remarked on."""
    remarked = 0
    for seed in range(200):
        noise = random.Random(seed)
        rows = history_rows(100, eval_loss=lambda f, noise=noise: falling(f) + noise.gauss(0, 0.01))
        for row in rows:
            if row["kind"] == "train":
                row["loss"] += noise.gauss(0, 0.15)
                row["grad_norm"] *= math.exp(noise.gauss(0, 0.3))
        remarked += bool(kinds(rows))
    assert remarked <= 1
