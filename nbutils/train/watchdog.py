"""Training processes that never outlive who started them, and never hang in silence."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

PARENT = "NBUTILS_PARENT"
"""Environment variable: the process, usually a notebook's kernel, that the workers must not outlive."""
AGENT = "TORCHELASTIC_RUN_ID"
"""Environment variable by which torchrun's workers know that their parent is torchrun."""
STARTED = "NBUTILS_STARTED"
"""Environment variable: when the time budget began, in seconds since the epoch. A Kaggle session has set it."""
HANG_SECONDS = float(os.environ.get("NBUTILS_HANG_SECONDS", "60"))
"""How long the workers' first exchange may take."""

RANK_PREFIX = "[rank {}] "
"""Stands before each line of a worker's traceback."""
EXIT_HANG = 75
"""Exit status of a worker whose first exchange with the other workers did not end in time."""


def end_with_parent() -> None:
    """Ends this process within a second of torchrun, and of the process named in NBUTILS_PARENT where one is.

    The workers are grandchildren of the notebook's kernel (torchrun stands between), so they watch the kernel itself;
    and since each of them leads a session of its own, nothing else ends them where torchrun alone is killed. Both also
    work under SIGKILL, and on macOS. A worker that was started without torchrun watches no parent.
    """
    name, agent = os.environ.get(PARENT), os.getppid()
    if name is None and AGENT not in os.environ:
        return
    kernel = None
    if name is not None:
        try:
            kernel = psutil.Process(int(name))
            kernel.create_time()
        except psutil.NoSuchProcess:
            os._exit(1)

    def watch() -> None:
        while (AGENT not in os.environ or os.getppid() == agent) and (kernel is None or _lives(kernel)):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


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
