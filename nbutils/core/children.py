"""Child processes of a notebook, and of torchrun, that never outlive who started them."""

from __future__ import annotations

import os
import threading
import time

import psutil

PARENT = "NBUTILS_PARENT"
"""Environment variable: the process, usually a notebook's kernel, that the workers must not outlive."""
AGENT = "TORCHELASTIC_RUN_ID"
"""Environment variable by which torchrun's workers know that their parent is torchrun."""


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
