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

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import studentized_range, t

from nbutils.core.bootstrap import FEWEST_GROUPS, LEVEL
from nbutils.core.errors import UserError
from nbutils.core.text import counted, number

NAMED = 3
"""Candidates that a part of the sentence names; of the others it gives the number."""


@dataclass(frozen=True)
class Trial:
    """One training: swept values, seed, and the held-out loss of each conversation.

    `heldout` is indexed by (source, index), with columns `loss_sum` in nats and `tokens`. Where it is empty, or a loss
    is no number, the trial diverged.
    """

    values: dict[str, Any]
    seed: int
    heldout: pd.DataFrame

    @property
    def loss(self) -> float | None:
        """Nats per token of all its conversations; None where it diverged."""
        loss, tokens = self.heldout[["loss_sum", "tokens"]].to_numpy(float).sum(axis=0)
        return float(loss / tokens) if tokens and np.isfinite(loss) else None


@dataclass(frozen=True)
class Row:
    """A candidate: its loss in nats per token, by seed and in all, and how far it is from the best, with the interval.

    Where a seed diverged, only the others have a loss, of all their conversations. The best differs by 0 from itself.
    """

    values: dict[str, Any]
    losses: dict[int, float | None]
    loss: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    worse: bool = False


@dataclass(frozen=True)
class Verdict:
    """What to take: the best values, the candidates from the best on, and a sentence to act on.

    `swept` are the parameters that differ; `conversations` are those of the half that reports; `notes`, with which the
    sentence ends, say what limits it. Where all diverged there are no best values.
    """

    swept: list[str]
    best: dict[str, Any]
    rows: list[Row]
    seeds: list[int]
    conversations: int
    notes: list[str]
    sentence: str


def judge(trials: Sequence[Trial]) -> Verdict:
    """The verdict on trials in any order; those of equal values are the seeds of one candidate.

    A candidate is compared with the seeds that it has, and is worse where one of them diverged. Only conversations that
    all trials measured count. Raises UserError where they are too few.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda each: (_key(each.values), each.seed)):
        groups.setdefault(_key(trial.values), []).append(trial)
    diverged = {_key(trial.values) for trial in trials if trial.loss is None}
    whole = [group for key, group in groups.items() if key not in diverged]
    names = [*trials[0].values]
    swept = [name for name in names if len({_key(trial.values[name]) for trial in trials}) > 1] or names
    seeds = sorted({trial.seed for trial in trials})
    rows, notes, count = _compared(whole) if whole else ([], [], 0)
    best = rows[0].values if rows else {}
    for key in sorted(diverged):
        losses = {trial.seed: trial.loss for trial in groups[key]}
        rows.append(Row(groups[key][0].values, losses, None, worse=True))
    if len(seeds) == 1:
        notes.append("Seeds were not measured: another one may turn this round.")
    for row in rows:
        if len(row.losses) < len(seeds):
            notes.append(f"{label(row.values, swept)} has {len(row.losses)} of {counted(len(seeds), 'seed')}.")
    return Verdict(swept, best, rows, seeds, count, notes, " ".join([_advice(rows, swept), *notes]))


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _compared(groups: list[list[Trial]]) -> tuple[list[Row], list[str], int]:
    """Rows from the best on, what to note of the conversations, and how many of them report."""
    trials = [*chain(*groups)]
    losses, tokens = (
        pd.concat([trial.heldout[column] for trial in trials], axis=1, join="inner").sort_index()
        for column in ("loss_sum", "tokens")
    )
    reports = pd.util.hash_pandas_object(losses.index, index=False).to_numpy() % 2 == 1  # (C,)
    count, common = int(reports.sum()), len(losses)
    if min(count, common - count) < 2:
        raise UserError(
            f"The trials have {counted(common, 'held-out conversation')} in common, too few to rank on one half and to "
            "report on the other; hold out more of them with `eval_fraction`."
        )
    begin = np.cumsum([0, *map(len, groups)])
    sums = np.split(losses.to_numpy(float).T, begin[1:-1])  # (S, C) each
    order = np.argsort([each[:, ~reports].sum(axis=1).mean() for each in sums], kind="stable")
    counts = tokens.to_numpy(float).T  # (N, C)
    of_best = counts[begin[order[0]]]
    weights = of_best[reports] / of_best[reports].sum()
    shares = [sums[place][:, reports] / of_best[reports].sum() for place in order]
    rows = []
    for place, share, found, margin in zip(order, shares, *_apart(shares, weights), strict=True):
        by_seed = share.sum(axis=1)
        losses = {trial.seed: float(loss) for trial, loss in zip(groups[place], by_seed, strict=True)}
        loss, low, high = map(float, (by_seed.mean(), found - margin, found + margin))
        rows.append(Row(groups[place][0].values, losses, loss, float(found), low, high, low > 0))
    notes: list[str] = []
    every = len(reduce(pd.Index.union, (trial.heldout.index for trial in trials)))
    if common < every:
        notes.append(f"Only {common} of {every} conversations are in all trials; they alone are compared.")
    if (counts != of_best).any():
        notes.append("Trials count tokens differently: each conversation's loss is divided by the tokens of the best.")
    if count < FEWEST_GROUPS:
        notes.append(f"{counted(count, 'conversation')} are few for an interval.")
    return rows, notes, count


def _apart(shares: list[np.ndarray], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differences to the first candidate and their margins (K,) in nats per token.

    From each conversation's share of the loss (S, C) of each candidate and of the tokens (C,).
    """
    seeds = np.array([len(share) for share in shares])
    mean = np.stack([share.mean(axis=0) for share in shares])  # (K, C)
    difference = mean.sum(axis=1) - mean[0].sum()
    conversations = _variance(mean - mean[0] - difference[:, None] * weights)

    own = np.zeros(len(shares))
    for place, share in enumerate(shares):
        if len(share) > 1:
            loss = share.sum(axis=1, keepdims=True)  # (S, 1)
            apart = share - mean[place] - (loss - loss.mean()) * weights
            own[place] = loss.var(ddof=1) - _variance(apart).sum() / (len(share) - 1)
    freedom = np.cumsum(seeds - 1)
    known = np.maximum(np.arange(len(shares)), np.argmax(freedom > 0))  # a first candidate may have but one seed
    pooled = (np.cumsum(own * (seeds - 1)) / np.maximum(freedom, 1))[known]
    spread = np.maximum(pooled * (1 / seeds + 1 / seeds[0]), own / seeds + own[0] / seeds[0]).clip(0)

    wide = t.isf((1 - LEVEL) / 2 / max(1, len(shares) - 1), len(weights) - 1)
    range_ = np.array([_range(len(shares), each) for each in freedom[known]])
    return difference, np.sqrt(wide**2 * conversations + range_**2 * spread) * (np.arange(len(shares)) > 0)


def _variance(residuals: np.ndarray) -> np.ndarray:
    """The variance of sums (…) over conversations from residuals (…, C)."""
    count = residuals.shape[-1]
    return (residuals**2).sum(axis=-1) * count / (count - 1)


@cache
def _range(candidates: int, freedom: int) -> float:
    """Standard errors by which the largest of all differences exceeds chance; 0 where nothing is known of seeds.

    Degrees of freedom are rounded down to four steps an octave: each quantile takes a tenth of a second.
    """
    if freedom < 1 or candidates < 2:
        return 0.0
    return float(studentized_range.ppf(LEVEL, candidates, 2 ** (math.floor(4 * math.log2(freedom)) / 4))) / math.sqrt(2)


def label(values: Mapping[str, Any], swept: Sequence[str], best: Mapping[str, Any] | None = None) -> str:
    """Swept values as words; beside the best only what differs from it, and of a single parameter the value alone."""
    shown = {name: f"{x:.10g}" if isinstance(x := values[name], float) else str(x) for name in swept}
    if best is not None and len(swept) == 1:
        return shown[swept[0]]
    return " / ".join(f"{name} {text}" for name, text in shown.items() if best is None or values[name] != best[name])


def _advice(rows: Sequence[Row], swept: Sequence[str]) -> str:
    """What to take, and which are worse by how much, cannot be told apart from it, or diverged; the nearest first.

    Where the two halves contradict each other, it says so.
    """
    best, *others = rows
    if best.loss is None:
        return "All trials diverged; there is nothing to take."
    if not others:
        return f"{label(best.values, swept)} was tried alone: {number(best.loss)} nats per token."

    def names(chosen: Sequence[Row]) -> str:
        labels = [label(row.values, swept, best.values) for row in chosen]
        if len(labels) > NAMED:
            labels[NAMED:] = [f"{len(labels) - NAMED} more"]
        return " and ".join(filter(None, (", ".join(labels[:-1]), labels[-1])))

    diverged = [row for row in others if row.difference is None]
    worse = sorted((row for row in others if row.worse and row not in diverged), key=lambda row: row.difference or 0)
    better = [row for row in others if (row.high or 0) < 0]
    alike = [row for row in others if not row.worse and row not in better]
    claims = []
    if worse:
        near, *far = worse
        interval = f"[{number(near.low or 0)}, {number(near.high or 0)}]"
        claims.append(f"{number(near.difference or 0)} nats better than {names([near])} {interval}")
        claims[0] += f", and better than {names(far)}" if far else ""
    if alike:
        claims.append(f"{names(alike)} cannot be told apart from it")
    if better:
        claims.append(f"{names(better)} did better on the half that reports: more seeds or conversations would tell")
    if diverged:
        claims.append(f"{names(diverged)} diverged")
    cheaper = ", or what is cheaper" if alike and not worse else ""
    return f"Take {label(best.values, swept)}{cheaper}: {'; '.join(claims)}."
