"""A sweep says what can be told apart: seldom where there is nothing, surely where there is, and in words to act on."""

import json
import math
from dataclasses import asdict
from itertools import product

import numpy as np
import pandas as pd
import pytest

from nbutils.core.charts import save
from nbutils.core.errors import UserError
from nbutils.sweep.display import figure, table
from nbutils.sweep.verdict import Candidate, judge

CONVERSATIONS = pd.MultiIndex.from_product([["chitchat"], range(400)], names=["source", "index"])
SPREAD = 0.1
"""Nats per token by which a conversation suits one candidate more than another."""
STANDARD_ERROR = SPREAD * math.sqrt(2 * math.exp(0.6**2) / 200)
"""Of a paired mean over half of the conversations, whose lengths are as below."""


def sweep(number, losses, seeds=3, seed_spread=0.0, values=None):
    """Candidates that truly have these losses; conversations are hard or easy for all of them."""
    rng = np.random.default_rng(number)
    tokens, hard = np.round(rng.lognormal(5, 0.6, 400)), rng.normal(3.5, 0.5, 400)
    candidates = []
    for place, loss in enumerate(losses):
        suits, tables = rng.normal(loss, SPREAD, 400), {}
        for seed in range(seeds):
            each = hard + suits + rng.normal(0, seed_spread) + rng.normal(0, seed_spread, 400)
            tables[seed] = pd.DataFrame({"loss_sum": each * tokens, "tokens": tokens}, CONVERSATIONS)
        candidates.append(Candidate(values[place] if values else {"learning_rate": place}, tables))
    return candidates


def changed(candidate, change):
    """The same with other tables."""
    return Candidate(candidate.values, {seed: change(table) for seed, table in candidate.heldout.items()})


def rates(*numbers):
    return [{"learning_rate": number} for number in numbers]


@pytest.mark.parametrize("seeds,seed_spread", [(1, 0), (3, 0.02)])
def test_eight_equal_trials_are_seldom_told_apart(seeds, seed_spread):
    """The noise of three seeds is about that of the conversations."""
    verdicts = [judge(sweep(number, [0] * 8, seeds, seed_spread)) for number in range(200)]
    assert sum(any(row.word == "worse" for row in verdict.rows) for verdict in verdicts) <= 10


@pytest.mark.parametrize("errors,at_least", [(2, 100), (4, 190)])
def test_a_true_difference_is_found(errors, at_least):
    verdicts = [judge(sweep(number, [0, errors * STANDARD_ERROR], seeds=1)) for number in range(200)]
    assert sum(v.best == {"learning_rate": 0} and v.rows[1].word == "worse" for v in verdicts) >= at_least


def test_what_seeds_explain_is_not_called_worse():
    """A difference that is sure for these models is not for this recipe."""
    alone, drawn = (judge(sweep(3, [0, 0.02], seeds, 0.1)) for seeds in (1, 3))
    assert alone.rows[1].word == "worse" and "Seeds were not measured" in alone.sentence
    assert drawn.rows[1].word == "not distinguishable" and "Seeds" not in drawn.sentence


def test_a_wild_candidate_does_not_hide_what_calm_ones_show():
    candidates = sweep(0, [0, 0.1], 3, 0.002, rates(1e-3, 3e-4)) + sweep(1, [2], 3, 1.0, rates(0.4))
    assert [row.word for row in judge(candidates).rows][:2] == ["best", "worse"]


def test_the_sentence_says_what_to_take():
    candidates = sweep(1, [0.1, 0, 0.003, 0.3, 3], seed_spread=0.005, values=rates(3e-4, 1e-3, 2e-3, 1e-4, 0.4))
    candidates[-1].heldout[2].iloc[5, 0] = math.nan
    verdict = judge(candidates)
    *_, (value, low, high), far, _ = (row.above for row in verdict.rows)
    assert verdict.sentence == (
        f"Take learning_rate 0.001: {value:.3f} nats better than 0.0003 [{low:.3f}, {high:.3f}], "
        "and better than 0.0001; 0.002 cannot be told apart from it; 0.4 diverged."
    )
    assert low < 0.1 < high and far[1] < 0.3 < far[2]
    broken = verdict.rows[-1]
    assert (broken.word, broken.above, broken.loss, broken.losses[2]) == ("diverged", None, None, None)
    assert json.dumps(asdict(judge(candidates[::-1])), allow_nan=False) == json.dumps(asdict(verdict))


@pytest.mark.parametrize(
    "tried,losses,words",
    [
        ((1e-3, 0.01, 0.1), (0, 0.1, 0.2), "learning_rate 0.001 is the lowest"),
        ((1e-3, 0.01, 0.1), (0.2, 0.1, 0), "learning_rate 0.1 is the highest"),
        ((1e-3, 0.01, 0.1), (0.1, 0, 0.2), ""),
        ((1e-3, 0.01, 0.1), (0, 0.0001, 0.2), ""),  # one between does as well
        ((0, 0.1), (0, 0.1), ""),
        (({"c": 1}, {"c": 2}), (0, 0.1), ""),
    ],
)
def test_where_the_best_is_the_last_that_was_tried_it_says_to_go_on(tried, losses, words):
    said = judge(sweep(0, losses, 2, 0.001, rates(*tried))).sentence
    assert words in said and ("try beyond it" in said) == bool(words)


def contradicting(table):
    """Far worse where candidates are ranked, and better elsewhere."""
    reports = pd.util.hash_pandas_object(CONVERSATIONS, index=False) % 2 == 1
    return table.assign(loss_sum=table["loss_sum"] + np.where(reports, -60, 90))


@pytest.mark.parametrize(
    "change,unchanged,words",
    [
        (lambda table: table[:300], 1, "Only 300 of 400"),
        (lambda table: table.assign(tokens=9), 1, "tokens of the best"),
        (lambda table: table[:30], 0, "are few"),
        (lambda table: table.assign(loss_sum=math.nan), 0, "All trials diverged"),
        (lambda table: table.assign(loss_sum=math.inf), 1, "0.001: 0.0003 diverged."),
        (contradicting, 1, "Take learning_rate 0.001: 0.0003 did better on the half that reports"),
    ],
)
def test_what_limits_the_answer_is_said(change, unchanged, words):
    candidates = sweep(0, [0, 0.1], 2, values=rates(1e-3, 3e-4))
    assert words in judge(candidates[:unchanged] + [changed(each, change) for each in candidates[unchanged:]]).sentence


def test_too_few_conversations_are_refused():
    with pytest.raises(UserError, match="have 1 held-out conversation in common"):
        judge([changed(each, lambda table: table[:1]) for each in sweep(0, [0, 0])])


def test_other_tokenizers_are_compared_by_their_losses_of_whole_conversations():
    first, second = sweep(0, [0, 0.1])
    coarse = changed(second, lambda table: table.assign(tokens=table["tokens"] // 2))
    assert judge([first, coarse]).rows == judge([first, second]).rows


def test_table_and_figure_show_several_parameters(tmp_path):
    names = ("schedule", "learning_rate", "optimizer")
    tried = product(("cosine", "linear"), (1e-3, 1e-4, 0.4), ("adamw", "muon"))
    values = [dict(zip(names, each, strict=True)) for each in tried]
    candidates = sweep(0, [0] + [0.1] * 11, 2, values=values)
    for candidate in candidates:
        candidate.heldout[1]["loss_sum"] += math.inf if candidate.values["learning_rate"] == 0.4 else 0
    verdict = judge(candidates)
    shown = table(verdict)
    assert shown.iloc[0, :3].tolist() == ["cosine", "0.001", "adamw"] and shown.iloc[0, -1] == "best"
    assert shown["seed 1"].tolist()[-4:] == ["diverged"] * 4
    drawn = figure(verdict)
    assert drawn.axes[0].get_xscale() == "log"
    words = {text.get_text() for text in drawn.legends[0].get_texts()}
    assert {"schedule cosine / optimizer muon", "a seed", "best", "diverged"} <= words
    save(lambda theme: figure(verdict, theme), tmp_path, "sweep")
    assert len([*tmp_path.iterdir()]) == 4
    figure(judge([changed(each, lambda table: table * math.nan) for each in candidates]))  # all diverged
    near = [figure(judge(sweep(0, [0, 0.1], values=rates(0.002, rate)))) for rate in (0.006, 0.008)]
    assert [each.axes[0].get_xscale() for each in near] == ["linear", "log"]
    drawn = figure(judge(sweep(0, [0, 0.1, 0.2], values=[{"base_model": name * 40} for name in "abc"])))
    drawn.draw_without_rendering()
    places = [text.get_window_extent() for text in drawn.axes[0].get_xticklabels()]
    assert min(each.x0 for each in places) > 0 and max(each.x1 for each in places) < drawn.bbox.width
