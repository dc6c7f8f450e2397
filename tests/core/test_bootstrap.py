"""The comparison finds planted differences, and finds none where there is none more often than it promises."""

import math
from collections import Counter
from functools import partial

import numpy as np
import pandas as pd
import pytest

from nbutils.core.bootstrap import TOO_FEW, Estimate, interval, paired_difference, word_for
from nbutils.evaluate.compare import Metric, sums_of


def accuracies(correct):
    """Sums of items of weight 1 (items, 2)."""
    return np.stack([correct, np.ones(len(correct))], axis=1)


def answers(rng, gain=0.0):
    """Two models of equal accuracy on 500 items that agree on many, as models do on what is hard for both.

    Then the first is right on `gain` of the others too.
    """
    together, common = rng.random(500) < 0.6, rng.random(500) < 0.45
    a, b = (np.where(together, common, rng.random(500) < 0.45) for _ in range(2))
    return accuracies(a | (rng.random(500) < gain)), accuracies(b)


def pages(rng, count):
    """Two equal models on pages of very different length, as WikiText's are, that are hard or easy for both."""
    words = np.round(rng.lognormal(7.8, 0.9, count))
    hard = rng.normal(-4, 0.6, count)
    a, b = (np.stack([(hard + rng.normal(0, 0.1, count)) * words, words], axis=1) for _ in range(2))
    return a, b


def said(pairs, kind, models):
    """How often each word is said of so many pairs of models."""
    made = (models(np.random.default_rng(seed)) for seed in range(pairs))
    return Counter(word_for(paired_difference(*pair, kind, 1000, seed), True) for seed, pair in enumerate(made))


def test_a_true_ten_point_difference_on_500_items_is_called():
    assert said(40, "mean", partial(answers, gain=0.2))["better"] >= 36  # 0.45 + 0.55 × 0.2: eleven points


@pytest.mark.parametrize(
    "pairs,kind,models",
    [
        (200, "mean", answers),
        (400, "perplexity", partial(pages, count=20)),
        (400, "perplexity", partial(pages, count=62)),
    ],
)
def test_equal_models_are_seldom_called_different(pairs, kind, models):
    """In 5 % of the pairs, and two standard errors of that count; on few pages of unlike length too."""
    words = said(pairs, kind, models)
    assert TOO_FEW not in words
    assert pairs - words["not distinguishable"] <= 0.05 * pairs + 2 * math.sqrt(pairs * 0.05 * 0.95)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    found = (interval(accuracies(np.random.default_rng(s).random(400) < 0.3), "mean", 1000, s) for s in range(200))
    assert sum(estimate.low <= 0.3 <= estimate.high for estimate in found) >= 180


def test_replies_of_one_conversation_are_resampled_together():
    correct = np.repeat(np.random.default_rng(0).random(50) < 0.5, 20)  # all 20 items of a conversation alike
    table = pd.DataFrame({"group": np.arange(1000) // 20, "acc": correct, "acc_weight": 1.0})
    grouped = interval(sums_of(table, Metric("acc", "mean", True)), "mean", 2000, 0)
    alone = interval(accuracies(correct), "mean", 2000, 0)
    assert grouped.value == pytest.approx(alone.value)
    assert grouped.high - grouped.low > 3 * (alone.high - alone.low)


def test_a_difference_is_seen_on_the_same_items_where_the_intervals_overlap():
    a, b = pages(np.random.default_rng(0), 300)
    a[:, 0] += 0.05 * a[:, 1]  # of each page's words
    one, other = (interval(sums, "perplexity", 1000, 0) for sums in (a, b))
    assert one.high > other.low
    assert paired_difference(a, b, "perplexity", 1000, 0).high < 0


@pytest.mark.parametrize(
    "low,groups,higher_is_better,word",
    [
        (0.2, 20, True, "better"),
        (0.2, 20, False, "worse"),
        (-0.2, 20, True, "not distinguishable"),
        (0.2, 19, True, TOO_FEW),
    ],
)
def test_words_name_only_what_the_interval_shows(low, groups, higher_is_better, word):
    assert word_for(Estimate(1, 0.5, low, 2, groups), higher_is_better) == word
