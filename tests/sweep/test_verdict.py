"""A sweep says what can be told apart: seldom where there is nothing, surely where there is, and in words to act on."""

import json
import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from nbutils.core.charts import save
from nbutils.core.errors import UserError
from nbutils.sweep.display import figure, table
from nbutils.sweep.verdict import Trial, judge

CONVERSATIONS = pd.MultiIndex.from_product([["chitchat"], range(400)], names=["source", "index"])
SPREAD = 0.1
"""Nats per token by which a conversation suits one candidate more than another."""
STANDARD_ERROR = SPREAD * math.sqrt(2 * math.exp(0.6**2) / 200)
"""Of a paired mean over half of the conversations, whose lengths are as below."""


def sweep(number, losses, seeds=3, seed_spread=0.0, values=None):
    """Trials whose candidates truly have these losses; conversations are hard or easy for all of them."""
    rng = np.random.default_rng(number)
    tokens, hard = np.round(rng.lognormal(5, 0.6, 400)), rng.normal(3.5, 0.5, 400)
    trials = []
    for place, loss in enumerate(losses):
        suits = rng.normal(loss, SPREAD, 400)
        for seed in range(seeds):
            each = hard + suits + rng.normal(0, seed_spread) + rng.normal(0, seed_spread, 400)
            held = pd.DataFrame({"loss_sum": each * tokens, "tokens": tokens}, CONVERSATIONS)
            trials.append(Trial(values[place] if values else {"learning_rate": place}, seed, held))
    return trials


def rates(*numbers):
    return [{"learning_rate": number} for number in numbers]


@pytest.mark.parametrize("seeds,seed_spread", [(1, 0), (3, 0.02)])
def test_eight_equal_trials_are_seldom_told_apart(seeds, seed_spread):
    """The noise of three seeds is about that of the conversations."""
    verdicts = [judge(sweep(number, [0] * 8, seeds, seed_spread)) for number in range(200)]
    assert sum(any(row.worse for row in verdict.rows) for verdict in verdicts) <= 10


@pytest.mark.parametrize("errors,at_least", [(2, 100), (4, 190)])
def test_a_true_difference_is_found(errors, at_least):
    verdicts = [judge(sweep(number, [0, errors * STANDARD_ERROR], seeds=1)) for number in range(200)]
    assert sum(v.best == {"learning_rate": 0} and v.rows[1].worse for v in verdicts) >= at_least


def test_what_seeds_explain_is_not_called_worse():
    """A difference that is sure for these models is not for this recipe."""
    alone, drawn = (judge(sweep(3, [0, 0.02], seeds, 0.1)) for seeds in (1, 3))
    assert alone.rows[1].worse and "Seeds were not measured" in alone.sentence
    assert not drawn.rows[1].worse and "Seeds" not in drawn.sentence


def test_a_wild_candidate_does_not_hide_what_calm_ones_show():
    trials = sweep(0, [0, 0.1], 3, 0.002, rates(1e-3, 3e-4)) + sweep(1, [2], 3, 1.0, rates(0.4))
    assert [row.worse for row in judge(trials).rows][:2] == [False, True]


def test_the_sentence_says_what_to_take():
    trials = sweep(1, [0.1, 0, 0.003, 0.3, 3], seed_spread=0.005, values=rates(3e-4, 1e-3, 2e-3, 1e-4, 0.4))
    trials[-1].heldout.iloc[5, 0] = math.nan  # one seed
    verdict = judge(trials)
    *_, near, far, broken = verdict.rows
    assert verdict.sentence == (
        f"Take learning_rate 0.001: {near.difference:.3f} nats better than 0.0003 [{near.low:.3f}, {near.high:.3f}], "
        "and better than 0.0001; 0.002 cannot be told apart from it; 0.4 diverged."
    )
    assert near.low < 0.1 < near.high and far.low < 0.3 < far.high
    assert (broken.worse, broken.low, broken.loss, broken.losses[2]) == (True, None, None, None)
    assert broken.losses[0] > 6
    assert json.dumps(asdict(judge(trials[::-1])), allow_nan=False) == json.dumps(asdict(verdict))


def contradicting(trials):
    """The second recipe is far worse where the recipes are ranked, and better elsewhere."""
    reports = pd.util.hash_pandas_object(CONVERSATIONS, index=False) % 2 == 1
    for trial in trials[2:]:
        trial.heldout["loss_sum"] += np.where(reports, -60, 90)
    return trials


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda trials: trials[:-1], "0.0003 has 1 of 2 seeds."),
        (lambda trials: trials[:2], "learning_rate 0.001 was tried alone"),
        (lambda trials: [*trials[:3], Trial(trials[3].values, 1, trials[3].heldout[:300])], "Only 300 of 400"),
        (lambda trials: [*trials[:3], Trial(trials[3].values, 1, trials[3].heldout.assign(tokens=9))], "tokens of the"),
        (lambda trials: [Trial(each.values, each.seed, each.heldout[:30]) for each in trials], "are few"),
        (lambda trials: [Trial(each.values, each.seed, each.heldout[:0]) for each in trials], "All trials diverged"),
        (lambda trials: [*trials[:3], Trial(trials[3].values, 1, trials[3].heldout[:0])], "0.001: 0.0003 diverged."),
        (contradicting, "Take learning_rate 0.001: 0.0003 did better on the half that reports"),
    ],
)  # fmt: skip
def test_what_limits_the_answer_is_said(change, words):
    assert words in judge(change(sweep(0, [0, 0.1], 2, values=rates(1e-3, 3e-4)))).sentence


def test_too_few_conversations_are_refused():
    with pytest.raises(UserError, match="have 1 held-out conversation in common"):
        judge([Trial({}, 0, sweep(0, [0])[0].heldout[:1])])


def test_other_tokenizers_are_compared_by_their_losses_of_whole_conversations():
    trials = sweep(0, [0, 0.1])
    coarse = [Trial(each.values, each.seed, each.heldout.assign(tokens=each.heldout["tokens"] // 2)) for each in trials]
    assert judge(trials[:3] + coarse[3:]).rows == judge(trials).rows


def test_table_and_figure_show_several_parameters(tmp_path):
    values = [
        {"schedule": schedule, "learning_rate": rate, "optimizer": optimizer}
        for rate in (1e-4, 1e-3, 0.4)
        for schedule in ("cosine", "linear")
        for optimizer in ("adamw", "muon")
    ]
    trials = sweep(0, [0.1] * 4 + [0, 0.1, 0.1, 0.1] + [9] * 4, 2, values=values)
    for trial in trials[16:]:
        trial.heldout["loss_sum"] = math.inf
    verdict = judge(trials)
    shown = table(verdict)
    assert shown.iloc[0, :3].tolist() == ["cosine", "0.001", "adamw"] and shown.iloc[0, -1] == "best"
    assert shown["seed 1"].tolist()[-4:] == ["diverged"] * 4
    drawn = figure(verdict)
    assert [axes.get_title(loc="left")[-16:] for axes in drawn.axes] == [" optimizer adamw", "· optimizer muon"]
    assert [axes.get_xscale() for axes in drawn.axes] == ["log"] * 2
    words = {text.get_text() for text in drawn.legends[0].get_texts()}
    assert {"schedule cosine", "a seed", "best", "diverged"} <= words
    save(lambda theme: figure(verdict, theme), tmp_path, "sweep")
    assert len([*tmp_path.iterdir()]) == 4
    figure(judge([Trial(trial.values, trial.seed, trial.heldout[:0]) for trial in trials]))  # all diverged
    drawn = figure(judge(sweep(0, [0, 0.1, 0.2], values=[{"base_model": name * 40} for name in "abc"])))
    drawn.draw_without_rendering()
    places = [text.get_window_extent() for text in drawn.axes[0].get_xticklabels()]
    assert min(each.x0 for each in places) > 0 and max(each.x1 for each in places) < drawn.bbox.width
