"""The quantities of the training log, and how figures and tables show them: a new one is one entry of METRICS."""

from __future__ import annotations

from dataclasses import dataclass

LOG = "metrics.jsonl"
"""The log's file in the folder of the training."""

SECONDS = {
    "data": "waiting for data",
    "forward_backward": "forward and backward",
    "optimizer": "optimizer step",
    "evaluation": "evaluation",
    "checkpoint": "checkpoints",
}
"""The parts of a row's `seconds` (wall seconds since the row before), in plain words."""


@dataclass(frozen=True)
class Metric:
    """A column of the training rows.

    `figure`: the figure that shows it, perhaps with others. `evaluation`: the column of the evaluation rows that
    measures the same; `evaluation_alike` the one that also counts the same tokens where training counts all.
    `over_run`: how the run's one value is found (`median`, `highest`, or `mean` of a share over all token
    positions); the table of numbers then has a row for it.
    """

    column: str
    figure: str
    label: str
    unit: str = ""
    form: str = "{:.2f}"
    smooth: bool = True
    from_zero: bool = False
    evaluation: str = ""
    evaluation_alike: str = ""
    higher_is_better: bool = False
    over_run: str = ""

    @property
    def is_share(self) -> bool:
        """Whether its values are shares of one, shown as percentages of the unit."""
        return self.form.endswith("%}")

    @property
    def title(self) -> str:
        """Label and unit."""
        return f"{self.label}, {'share of ' * self.is_share}{self.unit}" if self.unit else self.label

    @property
    def form_with_unit(self) -> str:
        """How a value is written with its unit."""
        return f"{self.form} {'of ' * self.is_share}{self.unit}"


LOSS = Metric(
    "loss", "loss", "Loss", "nats per supervised token",
    evaluation="eval_loss", evaluation_alike="eval_loss_all_tokens",
)  # fmt: skip
ACCURACY = Metric(
    "token_accuracy", "token_accuracy", "Token accuracy", "supervised tokens", "{:.1%}",
    evaluation="eval_token_accuracy", higher_is_better=True,
)  # fmt: skip
SPEED = Metric(
    "tokens_per_second", "throughput", "Speed", "tokens per second", "{:,.0f}", from_zero=True, over_run="median"
)
MFU = Metric(
    "mfu", "throughput", "Utilisation (MFU)", "the device's matrix-product speed", "{:.0%}",
    from_zero=True, over_run="median",
)  # fmt: skip
METRICS = (
    LOSS,
    ACCURACY,
    Metric("learning_rate", "learning_rate", "Learning rate", form="{:.2g}", smooth=False),
    Metric("grad_norm", "grad_norm", "Gradient norm before clipping"),
    SPEED,
    MFU,
    Metric("padding", "throughput", "Padding", "all token positions", "{:.2%}", from_zero=True, over_run="mean"),
    Metric("peak_memory_gib", "memory", "Peak memory", "GiB", smooth=False, from_zero=True, over_run="highest"),
)
