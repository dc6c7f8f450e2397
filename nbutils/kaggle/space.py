"""The output of a Kaggle session: at most 20 GB, and what is dropped first when it grows beyond."""

from __future__ import annotations

import shutil
from pathlib import Path

from nbutils.core.record import CHECKPOINTS, stage_status
from nbutils.kaggle.earlier import newest_checkpoint
from nbutils.train.checkpoints import DAMAGED, PARTIAL, newest_first

LIMIT = 20_000_000_000
"""Bytes that Kaggle keeps of `/kaggle/working` (kaggle.com/docs/notebooks, technical specifications)."""

LEFT = (f"*{PARTIAL}", f"{DAMAGED}*")
"""Checkpoints that nobody goes on from."""


def used(folder: Path) -> int:
    """Bytes of all files below a folder; one that has two names counts once."""
    found = (path.stat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in found}.values())


def keep_under(working: Path, run: Path, limit: int = LIMIT) -> list[str]:
    """Drops what can be missed until `working` is below the limit, and says what: what is half written, caches, then
    checkpoints.

    Of an unfinished training the newest valid checkpoint stays whatever its size; of a finished one none is needed.
    """
    dropped: list[str] = []
    for candidate in _candidates(working, run):
        if used(working) <= limit:
            break
        shutil.rmtree(candidate)
        dropped.append(str(candidate.relative_to(working)))
    return dropped


def _candidates(working: Path, run: Path) -> list[Path]:
    half = [*run.parent.glob(".mirror-*"), *(p for n in LEFT for p in (run / "train" / CHECKPOINTS).glob(n))]
    caches = [path for path in (run.parent / ".cache", working / ".cache") if path.is_dir()]
    checkpoints = list(newest_first(run / "train" / CHECKPOINTS))
    if stage_status(run, "train") != "done":
        newest = newest_checkpoint(run / "train")
        checkpoints = [path for path in checkpoints if path != newest]
    return half + caches + checkpoints[::-1]
