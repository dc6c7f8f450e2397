"""How much of what a model replies stands word for word in its training rows, beside what people say there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter

import numpy as np

from nbutils.core.bootstrap import interval, paired_difference, word_for
from nbutils.core.files import Json
from nbutils.core.origin.index import MIN_WORDS, Index, words_in
from nbutils.evaluate.behaviour import wilson

PEOPLE = "people"
"""Whose replies the held-out ones are: they are the yardstick, because people repeat what others say too."""
MORE_OR_LESS = {"better": "less", "worse": "more"}


def memorised(rows: Sequence[Json], index: Index, resamples: int, seed: int) -> Json:
    """What is repeated in replies by `model` and `decoding`, each to the same prompts in the same order.

    `share`: words in passages of six words or more that stand in the training rows, of all words; `longest`: words of
    the longest; `whole`: share of the replies that are a whole message there, of six words or more. `against_people`:
    the share less that of the people, with the word `more`, `less` or another of `word_for`. Intervals are 95 %, by the
    bootstrap over replies, Wilson's for `whole`.
    """
    found, sums = [], {}
    for (model, decoding), group in groupby(rows, itemgetter("model", "decoding")):
        counts = np.array([_counts(row["reply"], index) for row in group])  # (replies, 4)
        name, count, whole = (model, decoding), len(counts), float(counts[:, 3].mean())
        sums[name] = np.maximum(counts[:, :2], [0, 1e-9])  # a resample may hold none but empty replies
        own = {
            "model": model,
            "decoding": decoding,
            "replies": count,
            "share": asdict(interval(sums[name], "mean", resamples, seed)),
            "longest": int(counts[:, 2].max()),
            "whole": dict(zip(("value", "low", "high"), (whole, *wilson(whole, count)), strict=True)),
        }
        if model != PEOPLE:
            difference = paired_difference(sums[name], sums[PEOPLE, ""], "mean", resamples, seed)
            word = word_for(difference, higher_is_better=False)
            own["against_people"] = asdict(difference) | {"word": MORE_OR_LESS.get(word, word)}
        found.append(own)
    return {"min_words": MIN_WORDS, "rows": found}


def _counts(reply: str, index: Index) -> tuple[int, int, int, int]:
    """Of a reply the words in such passages, all words, those of its longest passage, and whether it is a message."""
    text, held, end, longest = index.read(reply), 0, 0, 0
    for span in index.trace(reply):  # from left to right; they may overlap
        held += words_in(text[max(end, span.start) : span.end])
        end, longest = span.end, max(longest, span.words)
    words = words_in(text)
    return held, words, longest, words >= MIN_WORDS and index.is_message(reply)
