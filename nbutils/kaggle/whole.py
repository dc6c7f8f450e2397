"""The whole pipeline in one Kaggle session, which ends before the long stage that follows training where it is late."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from nbutils.core.errors import UserError
from nbutils.core.stages import maker, stages
from nbutils.core.torchrun import STARTED

LONG = maker("scores").name
"""The stage that has no time budget of its own, and is not begun with little of the session left."""
LEAST_LEFT = 0.4
"""Share of `budget_minutes` that has to be left for it."""


def run_pipeline(profile: Path, stale: str, short: bool = False) -> None:
    """Runs the pipeline, with `short` only what comes before LONG; UserError with its last sentence if it fails.

    `stale`: accept, force or '' (see `carry_over`).
    """
    names = [stage.name for stage in stages()]
    options = ["--until", names[names.index(LONG) - 1]] if short else []
    options += [f"--{stale}"] if stale else []
    command = [sys.executable, "-m", "nbutils", "run", str(profile), *options]
    last = ""
    # ipykernel 7 asks all programs for colours, which makes redrawn bars of what is a log here.
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "CLICOLOR_FORCE")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    if process.returncode:
        raise UserError(f"The pipeline ended with status {process.returncode}: {last}")


def too_late(budget_minutes: float) -> str:
    """Why LONG waits for the next session, or '' where there is time enough (or no budget)."""
    if not budget_minutes or STARTED not in os.environ:
        return ""
    left = 1 - (time.time() - float(os.environ[STARTED])) / (60 * budget_minutes)
    if left >= LEAST_LEFT:
        return ""
    return f"{LONG} waits for the next session: {max(0.0, left):.0%} of budget_minutes ({budget_minutes:g}) is left."
