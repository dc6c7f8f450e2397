"""Asking a running stage to pause: a file in the run folder that the stage's loops look for.

The pipeline writes it when a signal asks it to stop. The stage saves a checkpoint, and its notebook ends with
`stage.finish("paused", step=…, fraction=…, how_to_continue=…)`.
"""

from __future__ import annotations

import os
from pathlib import Path

PIPELINE = "NBUTILS_PIPELINE"
"""Environment variable that marks every process started by a pipeline."""

FILE = "pause-requested"
GRACE_SECONDS = 120.0
"""How long a stage may take to save its checkpoint before its process tree is ended."""


def request(run: Path) -> None:
    """Asks whatever stage is at work in the run folder to save its state and pause."""
    (run / FILE).touch()


def requested(run: Path) -> bool:
    """Whether a pause has been asked for; cheap enough to call at every optimizer step."""
    return (run / FILE).exists()


def clear(run: Path) -> None:
    """Forgets an earlier request, at the start of a run; below a pipeline that is the pipeline's to do."""
    if PIPELINE not in os.environ:
        (run / FILE).unlink(missing_ok=True)
