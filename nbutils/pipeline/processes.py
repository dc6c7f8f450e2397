"""The processes of a run: found by a mark in their environment, and ended together.

A process tree by parent ids loses what outlives its parent, and torchrun's workers leave the kernel's session; the
environment is inherited by every descendant.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psutil

from nbutils.core.pause import PIPELINE as MARK

STUBBORN_SECONDS = 10.0
"""How long a process may take to die of SIGKILL (one that waits for a dead disk never does)."""

MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")
"""Where the system counts what befalls this container's memory (cgroup v2)."""


def run_mark(run: Path) -> str:
    """What the marks of all pipelines in a run folder begin with."""
    return hashlib.sha256(os.fsencode(run)).hexdigest()[:16]


def new_mark(run: Path) -> str:
    """A mark for the processes of one stage of one pipeline."""
    return f"{run_mark(run)}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def marked(mark: str) -> list[psutil.Process]:
    """The living processes whose environment carries a mark that begins so, this one never among them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return [process for process in found if process.pid != os.getpid()]


def end(mark: str, patience: float) -> int:
    """Ends all processes of a mark: SIGTERM, after `patience` seconds SIGKILL (at once for 0). Returns how many."""
    ended: set[int] = set()
    if patience > 0:
        ended |= _send(mark, signal.SIGTERM)
        _wait(mark, patience)
    deadline = time.monotonic() + STUBBORN_SECONDS
    while (killed := _send(mark, signal.SIGKILL)) and time.monotonic() < deadline:  # again, for what started meanwhile
        ended |= killed
        _wait(mark, 1.0)
    return len(ended)


def _send(mark: str, number: signal.Signals) -> set[int]:
    processes = marked(mark)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    return {process.pid for process in processes}


def _wait(mark: str, seconds: float) -> None:
    """Waits until the processes are gone. Never by waitpid: the kernel's exit status belongs to its own manager."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and marked(mark):
        time.sleep(0.05)


def oom_kills() -> int:
    """How many processes of this container the system has ended for lack of memory; 0 where it doesn't count them."""
    try:
        text = MEMORY_EVENTS.read_text()
    except OSError:
        return 0
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found.group(1)) if found else 0


class Guardian:
    """A small process that ends a stage's processes when the pipeline dies without a chance to do it (SIGKILL)."""

    def __init__(self, mark: str) -> None:
        command = [sys.executable, "-m", "nbutils.pipeline.guardian", mark]
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        # Its own session: a Ctrl-C in the terminal goes to the pipeline alone.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
        )

    def dismiss(self) -> None:
        """Lets the guardian do its last round and end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
