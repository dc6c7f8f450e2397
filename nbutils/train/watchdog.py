"""Training processes that never hang in silence, and what their log is read by."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STARTED = "NBUTILS_STARTED"
"""Environment variable: when the time budget began, in seconds since the epoch. A Kaggle session has set it."""
HANG_SECONDS = float(os.environ.get("NBUTILS_HANG_SECONDS", "60"))
"""How long the workers' first exchange may take."""

RANK_PREFIX = "[rank {}] "
"""Stands before each line of a worker's traceback."""
EXIT_HANG = 75
"""Exit status of a worker whose first exchange with the other workers did not end in time."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Ends this process with EXIT_HANG where the block takes longer: a hung exchange cannot be interrupted."""
    timer = threading.Timer(seconds, os._exit, args=(EXIT_HANG,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
