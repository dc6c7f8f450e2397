"""Training processes that never outlive who started them, and never hang in silence."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

PARENT = "NBUTILS_PARENT"
STARTED = "NBUTILS_STARTED"
"""Environment variable: when the time budget began, in seconds since the epoch. A Kaggle session has set it."""
HANG_SECONDS = float(os.environ.get("NBUTILS_HANG_SECONDS", "60"))
"""How long the workers' first exchange may take."""

RANK_PREFIX = "[rank {}] "
"""Stands before each line of a worker's traceback."""
EXIT_HANG = 75
"""Exit status of a worker whose first exchange with the other workers did not end in time."""


def end_with_parent() -> None:
    """Ends this process within a second of the process named in NBUTILS_PARENT; does nothing where none is named.

    The workers are grandchildren of the notebook's kernel (torchrun stands between), so they watch the kernel itself;
    this also works where the kernel is killed with SIGKILL, and on macOS.
    """
    name = os.environ.get(PARENT)
    if name is None:
        return
    try:
        parent = psutil.Process(int(name))
        parent.create_time()
    except psutil.NoSuchProcess:
        os._exit(1)

    def watch() -> None:
        try:
            while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.5)
        except psutil.NoSuchProcess:
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


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
