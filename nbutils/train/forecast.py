"""What a whole training takes, at a speed that `tune` has measured: time, sessions, the share of a week on Kaggle."""

from __future__ import annotations

import math

from nbutils.core.files import Json
from nbutils.core.run.layout import Run
from nbutils.core.run.record import read_record
from nbutils.core.text import counted, duration
from nbutils.train.settings import TrainSettings

TUNED = "tune.json"
"""In the run folder: what `tune` has measured."""
WEEK_HOURS = 30
"""GPU-hours that Kaggle gives a week; an hour on two T4s counts as one (kaggle.com/docs/efficient-gpu-usage)."""
OF_A_STEP = {
    "base_model", "max_length", "supervise", "precision", "deterministic", "compile", "optimizer", "trainer_options",
    "tokens_per_step", "tokens_per_microbatch", "processes",
}  # fmt: skip
"""Parameters that the time of a step depends on."""


def of_a_step(settings: TrainSettings) -> Json:
    """What the time of a step depends on."""
    return settings.model_dump(mode="json", include=OF_A_STEP)


def takes(tokens: float, speed: float, session_minutes: float, on_kaggle: bool) -> str:
    """How long so many tokens take at so many a second; in sessions of so many minutes, unless these are 0."""
    hours = tokens / speed / 3600
    words = f"about {hours:.1f} GPU-hours" if on_kaggle else f"about {duration(3600 * hours)}"
    if session_minutes:
        words += f" in {counted(math.ceil(60 * hours / session_minutes), 'session')}"
    return words + f", {hours / WEEK_HOURS:.0%} of the {WEEK_HOURS} hours that Kaggle gives a week" * on_kaggle


def expected(settings: TrainSettings, tokens: float) -> str:
    """What training steps with so many tokens take, where `tune` has measured these settings in the run; or ''."""
    found = read_record(Run(settings.run_path).path / TUNED) or {"tried": ()}
    for row in found["tried"]:
        speed, device = row.get("tokens_per_second"), found["device"]
        if speed and found["of_a_step"] | row["values"] == of_a_step(settings):
            return (
                f"The training steps take {takes(tokens, speed, settings.budget_minutes, 'T4' in device)}, at the "
                f"{speed:,.0f} tokens a second that `tune` measured on {device}, {found['time'][:10]}; evaluations "
                "come on top."
            )
    return ""
