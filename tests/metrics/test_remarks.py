"""Remarks on made-up histories: each finds what it is for, and a sound run gets none."""

import math
import random

import pytest

from nbutils.core.history import History
from nbutils.metrics.remarks import remarks
from tests.metrics.histories import SECONDS, falling, history_rows


def kinds(rows, planned=None):
    """Kind → text of each remark."""
    return {remark["kind"]: remark["text"] for remark in remarks(History.of(rows), planned)}


def after(fraction, value):
    """A loss of that function behind a part of the run."""
    return lambda f: falling(f) if f < fraction else value(f)


def changed(changes, count=100):
    """Rows of which those at some steps hold other values."""
    return [row | changes.get(row["step"], {}) for row in history_rows(count, noise=0.0)]


def spikes(steps, **values):
    return changed(dict.fromkeys(steps, {"grad_norm": 30.0} | values))


BROKEN = {"loss": math.nan}
STEEP = {
    step: {"grad_norm": norm, "loss": loss}
    for step, norm, loss in ((10, 4.1, 8.5), (20, 4.0, 8.4), (30, 3.9, 8.2), (40, 2.0, 7.0))
}
"""As the demo's start: three rows before the norm has settled, each far above what follows."""


@pytest.mark.parametrize(
    "kind,words,rows",
    [
        (
            "overfitting",
            ["lowest at step 500 (", f"rose to {falling(0.5) + 0.5:.3f}"],
            history_rows(100, eval_loss=after(0.5, lambda f: falling(0.5) + (f - 0.5))),
        ),
        ("learning_rate_too_high", ["together 4 times", "(norm 30.0, "], spikes((300, 500, 700, 900), loss=9.0)),
        ("not_a_number", ["at step 490 (2 rows in all)"], changed({490: BROKEN, 520: BROKEN})),
        ("starved_data_loader", [f"{0.4 / 1.2:.0%} of the time"], history_rows(60, seconds=SECONDS | {"data": 0.4})),
        ("skipped_steps", ["120 of 600"], history_rows(60, skipped_steps=120)),
        ("no_evaluation", ["eval_steps"], history_rows(60, eval_loss=None)),
        (
            "divergence",
            ["was 3.88 at step 690 and ended at 9.00"],
            history_rows(100, noise=0.0, loss=after(0.7, lambda _: 9.0)),
        ),
        ("unfinished_schedule", ["600 of 1000"], history_rows(60)),
        ("ended_early", ["step 600 of 1000"], [*history_rows(60), {"kind": "end", "step": 600, "chosen": 600}]),
    ],
)
def test_a_rule_finds_what_it_is_for_and_says_where(kind, words, rows):
    text = kinds(rows, planned=1000)[kind]
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    "rows",
    [
        *map(history_rows, (1, 5, 60, 500)),
        changed(STEEP, 30),
        spikes(range(100, 1001, 100)),
        history_rows(60, skipped_steps=3),
    ],
)
def test_a_sound_run_gets_no_remark(rows):
    assert kinds(rows, planned=rows[-1]["step"]) == {}


def test_rising_evaluation_loss_with_rising_training_loss_is_no_overfitting():
    assert "overfitting" not in kinds(history_rows(100, loss=lambda f: 4 + f, eval_loss=lambda f: 4 + f))


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
