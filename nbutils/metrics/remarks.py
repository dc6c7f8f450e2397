"""What a training history gives away, in plain words, each remark with its evidence.

The thresholds are rules of thumb; each stands beside the function that uses it, and the evidence lets a reader judge.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from nbutils.core.history import History, trend
from nbutils.core.text import counted


def remarks(history: History, planned_steps: int | None = None) -> list[dict[str, str]]:
    """Everything worth saying about a history: the name of the rule, and a sentence with the numbers it rests on."""
    found = {rule.__name__: rule(history) for rule in RULES}
    for rule in (unfinished_schedule, ended_early):
        found[rule.__name__] = rule(history, planned_steps)
    return [{"kind": kind, "text": text} for kind, text in found.items() if text]


def not_a_number(history: History) -> str | None:
    """A loss that is NaN or infinite, in training or evaluation."""
    training = history.series("loss").broken
    broken = np.r_[training, history.eval_series("eval_loss").broken]
    if not len(broken):
        return None
    first = broken.min()
    return (
        f"The {'training' if first in training else 'evaluation'} loss is not a number at step {int(first)} "
        f"({counted(len(broken), 'row')} in all): lower the learning rate, or train in fp32 or bf16."
    )


def divergence(history: History) -> str | None:
    """The smoothed training loss ends 20 % and 0.3 nats above its lowest point, and does not come back."""
    line = trend(history.series("loss"))
    if len(line) < 10:
        return None
    lowest = int(np.argmin(line.values))
    low, end = float(line.values[lowest]), float(line.values[-1])
    if end < low * 1.2 or end - low < 0.3:
        return None
    return (
        f"Training diverged: the smoothed loss was {low:.2f} at step {int(line.steps[lowest])} "
        f"and ended at {end:.2f}. Lower the learning rate or warm up longer."
    )


def learning_rate_too_high(history: History) -> str | None:
    """At least three times, gradient norm (over 4 × the median of the rows before) and loss (1.1 ×) jump together."""
    logged = (history.series(name) for name in ("grad_norm", "loss"))
    both = pd.concat([pd.Series(series.values, series.steps) for series in logged], axis=1, join="inner")
    # The median of up to 25 rows before each; infinite where fewer than 5 stand before it.
    usual = both.shift().rolling(25, min_periods=5).median().fillna(np.inf)
    jumped = both > usual * np.array([4, 1.1])
    hits = both[jumped[0] & (jumped[1] | jumped[1].shift(-1, fill_value=False))]  # the loss may jump one row later
    if len(both) < 15 or len(hits) < 3:
        return None
    worst = hits[0].idxmax()
    return (
        f"The learning rate looks too high: gradient norm and loss jumped together {len(hits)} times, most at step "
        f"{worst:.0f} (norm {hits[0][worst]:.1f}, {hits[0][worst] / usual[0][worst]:.0f} times what it was before). "
        "Halve it, or warm up longer."
    )


def overfitting(history: History) -> str | None:
    """Evaluation loss rose by 1 % or more from its minimum, over at least two evaluations, while training loss fell."""
    evals = history.eval_series("eval_loss")
    line = trend(history.series("loss"))
    if len(evals) < 3 or len(line) < 5:
        return None
    best = int(np.argmin(evals.values))
    low, end = float(evals.values[best]), float(evals.values[-1])
    if len(evals) - 1 - best < 2 or end < low * 1.01:
        return None
    then, now = line.at(evals.steps[best]), line.at(evals.steps[-1])
    if now >= then:
        return None
    return (
        f"Overfitting: evaluation loss was lowest at step {int(evals.steps[best])} ({low:.3f}) and rose to "
        f"{end:.3f}, while training loss fell from {then:.3f} to {now:.3f}. Train for fewer epochs, or on more data."
    )


def starved_data_loader(history: History) -> str | None:
    """More than 15 % of the time of training steps went into waiting for data."""
    parts = history.seconds
    working = sum(parts[name] for name in ("data", "forward_backward", "optimizer"))
    if working <= 0 or parts["data"] < 0.15 * working:
        return None
    share = parts["data"] / working
    return (
        f"The data loader starves the model: {share:.0%} of the time of training steps ({parts['data']:.0f} s of "
        f"{working:.0f} s) was spent waiting for data. Keep the data on a local disk, or give loading more processes."
    )


def skipped_steps(history: History) -> str | None:
    """More than 5 % of the optimizer steps were skipped because fp16 gradients overflowed."""
    count = int(history.series("skipped_steps").last or 0)
    if count < 3 or count < 0.05 * history.last_step:
        return None
    return (
        f"{count} of {history.last_step} optimizer steps were skipped because fp16 gradients overflowed. "
        "A few at the start are usual; for so many, lower the learning rate or use bf16."
    )


def earlier_model(history: History) -> str | None:
    """The final model is that of an earlier evaluation, because its loss was the lowest."""
    if history.earlier_model is None:
        return None
    evals = history.eval_series("eval_loss")
    kept, last = evals.at(history.earlier_model), evals.last if evals.ended else math.nan
    return (
        f"The final model is that of step {history.chosen}: its evaluation loss ({kept:.3f}) was the lowest of "
        f"{counted(history.choices, 'evaluation')}, and since it was chosen by it, reads a little too low. The model "
        f"of the last step, {history.last_step}, has {last:.3f}; it is in train/last."
    )


def no_evaluation(history: History) -> str | None:
    """There is no evaluation, or only the one before training."""
    evals = history.eval_series("eval_loss")
    if len(evals) and evals.steps[-1] > 0:
        return None
    return (
        "The run has no evaluation after training began, so nothing is known about conversations that it did not "
        "train on. Set eval_steps in notebook 02."
    )


def unfinished_schedule(history: History, planned_steps: int | None) -> str | None:
    """The run stopped before the last step of its learning-rate schedule."""
    if not planned_steps or history.last_step >= planned_steps or history.chosen is not None:
        return None
    rate = history.series("learning_rate").last
    left = f", with the learning rate still at {rate:.1e}" if rate else ""
    return (
        f"The schedule is unfinished: {history.last_step} of {planned_steps} steps were taken "
        f"({history.last_step / planned_steps:.0%}){left}. Run notebook 02 again to go on."
    )


def ended_early(history: History, planned_steps: int | None) -> str | None:
    """Training ended before its last step, since evaluations no longer brought a lower loss."""
    if history.chosen is None or not planned_steps or history.last_step >= planned_steps:
        return None
    return (
        f"Training ended at step {history.last_step} of {planned_steps}: its patience with evaluations that bring no "
        "lower loss ran out."
    )


RULES = (
    not_a_number, divergence, learning_rate_too_high, overfitting, earlier_model, starved_data_loader, skipped_steps,
    no_evaluation,
)  # fmt: skip
