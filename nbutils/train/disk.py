"""Room on the disk for checkpoints, and what a full disk looks like."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from nbutils.core.files import shown
from nbutils.core.run.checkpoints import set_aside_ones


def make_room(folder: Path, needed: int) -> str | None:
    """As `room_for`; where room is short, damaged checkpoints that were set aside are deleted."""
    problem = room_for(folder, needed)
    if problem and (damaged := set_aside_ones(folder)):
        for checkpoint in damaged:
            shutil.rmtree(checkpoint)
        problem = room_for(folder, needed)
    return problem


def room_for(folder: Path, needed: int) -> str | None:
    """None if `needed` bytes fit on the disk of `folder` with a tenth to spare, else what is missing, in words."""
    free = shutil.disk_usage(folder).free
    if free >= needed * 1.1:
        return None
    return (
        f"the disk of {shown(folder)} has {free / 2**20:,.0f} MiB free, a checkpoint needs {needed * 1.1 / 2**20:,.0f}"
    )


def disk_is_full(folder: Path, error: Exception) -> str | None:
    """Words for a write that failed because the disk is full; None where it failed for another reason."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return f"the disk of {shown(folder.parent)} became full while it was written"
    # torch's writer of archives names neither the cause nor its number.
    if "PytorchStreamWriter failed" in str(error) or "unexpected pos" in str(error):
        return f"writing to {shown(folder.parent)} failed, as on a full disk"
    return None
