"""Which trials of a sweep can be told apart on the held-out conversations.

Half of the conversations, by hash, ranks the candidates; the other half reports how far each is from the best, so that
the luck which made one the best is not counted as its merit. A loss is a ratio, nats over tokens; its variance is that
of its residuals over conversations (Cochran 1977, "Sampling Techniques", section 6.4), which are paired: all trials
read the same ones. Two things vary, and each has its margin:

- Conversations: Student's t, corrected by Bonferroni for the candidates that are compared with the best.
- Seeds: the spread of a candidate's loss over its seeds, less what the conversations explain of it. It is pooled over
  the candidates from the best to the one in question (a wild recipe at the end must not hide what calm ones show), and
  never below their own. The halves share their seeds, so that lucky seeds do make a candidate the best: here the
  studentized range, Student's t for the largest of all differences, corrects (Tukey 1953, Kramer 1956).

The margins' squares add up; that is slightly wider than the weighted t of Cochran & Cox 1957, section 4.14. Seeds count
as drawn anew for each candidate: where one helps or hurts all alike, intervals are too wide rather than too narrow. In
simulations eight equal candidates had one called worse in 2 to 5 % of sweeps, whatever part of the noise was the
seeds'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import studentized_range, t

from nbutils.core.bootstrap import FEWEST_GROUPS, LEVEL
from nbutils.core.errors import UserError
from nbutils.core.text import counted, number

BEST, WORSE, ALIKE, UNSETTLED, DIVERGED = "best", "worse", "not distinguishable", "unsettled", "diverged"
NAMED = 3
"""Candidates that a part of the sentence names; of the others it gives the number."""


@dataclass(frozen=True)
class Candidate:
    """A recipe: its swept values, and the held-out losses of each conversation by seed; all have the same seeds.

    A table is indexed by (source, index), with columns `loss_sum` in nats and `tokens`. Where a loss is no number, the
    training diverged.
    """

    values: dict[str, Any]
    heldout: dict[int, pd.DataFrame]

    @property
    def losses(self) -> dict[int, float | None]:
        """Nats per token of all conversations, by seed; None where it diverged."""
        means = {n: t["loss_sum"].sum(skipna=False) / max(1, t["tokens"].sum()) for n, t in self.heldout.items()}
        return {seed: float(mean) if np.isfinite(mean) else None for seed, mean in means.items()}


@dataclass(frozen=True)
class Row:
    """A candidate: its loss in nats per token, by seed and in all, and by how much it is above the best: the value, and
    the low and high end of its interval.

    Where a seed diverged, only the others have a loss, of all their conversations.
    `word` is BEST, WORSE, ALIKE, UNSETTLED (better than the best on the half that reports) or DIVERGED.
    """

    values: dict[str, Any]
    losses: dict[int, float | None]
    word: str
    loss: float | None = None
    above: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Verdict:
    """What to take: the best values, the candidates from the best on, and a sentence to act on, with what limits it.

    Where all diverged there are no best values.
    """

    best: dict[str, Any]
    rows: list[Row]
    sentence: str


def judge(candidates: Sequence[Candidate]) -> Verdict:
    """The verdict on candidates in any order.

    Only conversations that all trials measured count. Raises UserError where they are too few.
    """
    whole = [each for each in candidates if None not in each.losses.values()]
    rows, notes = _compared(whole) if whole else ([], [])
    best = rows[0].values if rows else {}
    rows += [Row(each.values, each.losses, DIVERGED) for each in candidates if None in each.losses.values()]
    if len(rows[0].losses) == 1:
        notes.append("Seeds were not measured: another one may turn this round.")
    return Verdict(best, rows, " ".join([_advice(rows), *_edges(rows), *notes]))


def _compared(candidates: Sequence[Candidate]) -> tuple[list[Row], list[str]]:
    """Rows from the best on, and what to note of the conversations."""
    tables = [table for candidate in candidates for table in candidate.heldout.values()]
    shared = pd.concat(tables, axis=1, join="inner").sort_index()
    reports = pd.util.hash_pandas_object(shared.index, index=False).to_numpy() % 2 == 1  # (C,)
    count, common = int(reports.sum()), len(shared)
    if min(count, common - count) < 2:
        raise UserError(
            f"The trials have {counted(common, 'held-out conversation')} in common, too few to rank on one half and to "
            "report on the other; hold out more of them with `eval_fraction`."
        )
    sums, counts = (
        shared[column].to_numpy(float).T.reshape(len(candidates), -1, common) for column in ("loss_sum", "tokens")
    )  # (K, S, C)
    order = np.argsort(sums[..., ~reports].sum(axis=(1, 2)), kind="stable")
    of_best = counts[order[0], 0]  # (C,)
    whole = of_best[reports].sum()
    shares = sums[order][..., reports] / whole
    difference, margin = _apart(shares, of_best[reports] / whole)
    above = np.stack([difference, difference - margin, difference + margin], axis=1)  # (K, 3)
    rows: list[Row] = []
    for place, by_seed, (value, low, high) in zip(order, shares.sum(axis=2).tolist(), above.tolist(), strict=True):
        candidate = candidates[place]
        losses = dict(zip(candidate.heldout, by_seed, strict=True))
        word = WORSE if low > 0 else UNSETTLED if high < 0 else ALIKE
        rows.append(Row(candidate.values, losses, word, fmean(by_seed), (value, low, high)))
    rows[0] = replace(rows[0], word=BEST, above=None)
    notes = []
    every = len(set().union(*(table.index for table in tables)))
    if common < every:
        notes.append(f"Only {common} of {every} conversations are in all trials; they alone are compared.")
    if (counts != of_best).any():
        notes.append("Trials count tokens differently: each conversation's loss is divided by the tokens of the best.")
    if count < FEWEST_GROUPS:
        notes.append(f"{counted(count, 'conversation')} are few for an interval.")
    return rows, notes


def _apart(shares: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differences to the first candidate and their margins (K,) in nats per token.

    From each conversation's share of the loss (K, S, C) and of the tokens (C,).
    """
    candidates, seeds, _ = shares.shape
    mean = shares.mean(axis=1, keepdims=True)  # (K, 1, C)
    loss = shares.sum(axis=2, keepdims=True)  # (K, S, 1)
    difference = loss.mean(axis=1) - loss[0].mean()  # (K, 1)
    conversations = _variance(mean[:, 0] - mean[0] - difference * weights)
    wide = t.isf((1 - LEVEL) / 2 / max(1, candidates - 1), len(weights) - 1)
    square = wide**2 * conversations  # (K,)
    if seeds > 1:
        apart = shares - mean - (loss - loss.mean(axis=1, keepdims=True)) * weights
        own = loss.var(axis=1, ddof=1)[:, 0] - _variance(apart).sum(axis=1) / (seeds - 1)
        among = np.arange(1, candidates + 1)
        spread = np.maximum(2 * np.cumsum(own) / among, own + own[0]).clip(0) / seeds
        square += spread * np.array([_range(candidates, n * (seeds - 1)) for n in among]) ** 2
    return difference[:, 0], np.sqrt(square)


def _variance(residuals: np.ndarray) -> np.ndarray:
    """The variance of sums (…) over conversations from residuals (…, C)."""
    count = residuals.shape[-1]
    return (residuals**2).sum(axis=-1) * count / (count - 1)


@cache
def _range(candidates: int, freedom: int) -> float:
    """Standard errors by which the largest of all differences exceeds chance.

    Degrees of freedom are rounded down to four steps an octave: each quantile takes a tenth of a second.
    """
    if candidates < 2:
        return 0.0
    return float(studentized_range.ppf(LEVEL, candidates, 2 ** (math.floor(4 * math.log2(freedom)) / 4))) / math.sqrt(2)


def text(value: Any) -> str:
    """A value as a word."""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def label(values: Mapping[str, Any]) -> str:
    """Values with the names of their parameters, in words."""
    return " / ".join(f"{name} {text(value)}" for name, value in values.items())


def _edges(rows: Sequence[Row]) -> list[str]:
    """Where the best value of a parameter is the lowest or highest that was tried, and none between does as well.

    Nothing is below 0, which often means something else, such as no limit.
    """
    found = []
    for name, value in rows[0].values.items():
        if type(value) not in (int, float) or not value or rows[0].word != BEST:
            continue
        low, high = (end(row.values[name] for row in rows) for end in (min, max))
        inner = any(low < row.values[name] < high for row in rows if row.word in (ALIKE, UNSETTLED))
        if low < high and value in (low, high) and not inner:
            which = "lowest" if value == low else "highest"
            found.append(f"{label({name: value})} is the {which} that was tried: try beyond it.")
    return found


def _advice(rows: Sequence[Row]) -> str:
    """What to take, and which are worse by how much, cannot be told apart from it, or diverged; the nearest first.

    Where the two halves contradict each other, it says so.
    """
    best = rows[0].values
    groups = {word: [row for row in rows if row.word == word] for word in (WORSE, ALIKE, UNSETTLED, DIVERGED)}
    if rows[0].word == DIVERGED:
        return "All trials diverged; there is nothing to take."

    def names(chosen: Sequence[Row]) -> str:
        apart = ({name: value for name, value in row.values.items() if value != best[name]} for row in chosen)
        labels = [text(*values.values()) if len(best) == 1 else label(values) for values in apart]
        if len(labels) > NAMED:
            labels[NAMED:] = [f"{len(labels) - NAMED} more"]
        return " and ".join(filter(None, (", ".join(labels[:-1]), labels[-1])))

    claims = []
    if groups[WORSE]:
        near, *far = sorted(groups[WORSE], key=lambda row: row.above or ())
        value, low, high = map(number, near.above or ())
        others = f", and better than {names(far)}" if far else ""
        claims.append(f"{value} nats better than {names([near])} [{low}, {high}]{others}")
    claims += [
        f"{names(groups[word])} {words}"
        for word, words in {
            ALIKE: "cannot be told apart from it",
            UNSETTLED: "did better on the half that reports: more seeds or conversations would tell",
            DIVERGED: "diverged",
        }.items()
        if groups[word]
    ]
    cheaper = ", or what is cheaper" if groups[ALIKE] and not groups[WORSE] else ""
    return f"Take {label(best)}{cheaper}: {'; '.join(claims)}."
