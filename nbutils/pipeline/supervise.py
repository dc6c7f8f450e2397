"""Signals to the pipeline, and the processes of its stages: asked to pause or stop, ended together, found again.

Every process of a stage carries a mark in its environment, which descendants inherit. Parent ids would lose what
outlives its parent, and torchrun's workers leave the kernel's session.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from nbutils.core.files import PLACE
from nbutils.core.run import pause
from nbutils.core.run.pause import PIPELINE as MARK

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPT_SECONDS = 10.0
"""How long a stage that cannot pause may take to end after an interrupt."""
PATIENCE_SECONDS = 5.0
"""How long a process left behind may take to end after SIGTERM."""
STUBBORN_SECONDS = 10.0
"""How long a process may take to die of SIGKILL (one that waits for a dead disk never does)."""


class Supervisor:
    """Takes the signals to a pipeline: the first asks the stage at work to pause or stop, a second one ends it now.

    `asked` is the first signal, `ended` says whether a stage had to be ended, `mark` is that of the stage at work.
    """

    asked: signal.Signals | None = None
    ended = False
    mark = ""
    _pausable = False
    _kernel: int | None = None
    _timer: threading.Timer | None = None

    def __init__(self, run: Path, say: Callable[[str], None]) -> None:
        self._run = run
        self._print = say

    @contextmanager
    def stage(self, pausable: bool) -> Iterator[None]:
        """Passes signals on to one stage while the block runs."""
        self.mark = f"{run_mark(self._run)}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._pausable, self._kernel = pausable, None
        try:
            yield
        finally:
            if self._timer:
                self._timer.cancel()
            self._timer, self.mark = None, ""

    @property
    def stops(self) -> bool:
        """Whether the stage at work should end before its next cell."""
        return self.asked is not None and not self._pausable

    def kernel_started(self, pid: int) -> None:
        """Tells which process an interrupt goes to; one that was asked for meanwhile is passed on now."""
        self._kernel = pid
        if self.asked:
            self._interrupt()

    def take(self, number: int, frame: FrameType | None) -> None:
        """Answers a signal."""
        if self.asked is None:
            self.asked = signal.Signals(number)
            self._interrupt()
        elif self.mark and not self.ended:
            self._say("Ending the stage now.")
            self._end()

    def _interrupt(self) -> None:
        """Asks the stage to pause, or interrupts its kernel; it is ended where it does not answer in time."""
        assert self.asked is not None
        if not self.mark:
            self._say(f"{self.asked.name}: stopping before the next stage.")
            return
        if self._timer:
            return
        if self._pausable:
            pause.request(self._run)
            self._say(
                f"{self.asked.name}: asking the stage to save a checkpoint and pause, "
                f"at most {pause.GRACE_SECONDS:.0f} s; once more ends it now."
            )
        elif self._kernel is not None:  # else it is starting, and kernel_started passes the interrupt on
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(self._kernel, signal.SIGINT)
            self._say(f"{self.asked.name}: stopping the stage; once more ends it now.")
        else:
            return
        self._timer = threading.Timer(pause.GRACE_SECONDS if self._pausable else INTERRUPT_SECONDS, self._end)
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        if mark := self.mark:  # the stage may be over just now
            self.ended = True
            end(mark, 0)

    def _say(self, text: str) -> None:
        # From a thread: the signal may have come in the middle of a print, which can't be entered a second time.
        threading.Thread(target=self._print, args=(text,), daemon=True).start()


@contextmanager
def taking(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Gives SIGINT, SIGTERM and SIGHUP to a handler while the block runs; under `nohup` SIGHUP stays ignored."""
    # An ignored SIGINT is taken all the same: shells ignore it for every job in the background of a script, where
    # whoever sends it to this very process means it.
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    before = {name: signal.signal(name, handler) for name in CAUGHT if not (name == signal.SIGHUP and nohup)}
    try:
        yield
    finally:
        for name, former in before.items():
            signal.signal(name, former)


def run_mark(run: Path) -> str:
    """What the marks of all stages in a run folder begin with."""
    return hashlib.sha256(os.fsencode(run)).hexdigest()[:16]


def marked(mark: str, among: Iterable[psutil.Process] | None = None) -> list[psutil.Process]:
    """The living processes whose environment carries a mark that begins so, this one never among them."""
    if not mark:
        raise ValueError("an empty mark would be that of every process of the machine")
    found = []
    for process in psutil.process_iter() if among is None else among:
        with suppress(psutil.Error, OSError):
            alive = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(MARK, "").startswith(mark):
                found.append(process)
    return found


def end(mark: str, patience: float = PATIENCE_SECONDS) -> int:
    """Ends all processes of a mark: SIGTERM, after `patience` seconds SIGKILL (at once for 0). Returns how many."""
    ended = set[int]()
    number, wait = (signal.SIGTERM, patience) if patience else (signal.SIGKILL, 1.0)
    deadline = time.monotonic() + patience + STUBBORN_SECONDS
    while (found := marked(mark)) and time.monotonic() < deadline:  # again, for what started meanwhile
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        ended |= {process.pid for process in found}
        until = time.monotonic() + wait
        # Not by waitpid: the kernel's exit status belongs to its own manager.
        while time.monotonic() < until and (found := marked(mark, found)):
            time.sleep(0.05)
        number, wait = signal.SIGKILL, 1.0
    return len(ended)


@contextmanager
def guarded(mark: str) -> Iterator[None]:
    """Ends what a stage leaves behind, also where this process dies without a chance to do it (SIGKILL)."""
    code = f"from nbutils.pipeline.supervise import guard; guard({mark!r})"
    # Its own session: a Ctrl-C in the terminal goes to the pipeline alone.
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=child_environment(),
        start_new_session=True,
    ):  # fmt: skip
        yield


def guard(mark: str) -> None:
    """Waits for the end of standard input, which comes when the pipeline closes it or dies, and ends what is left."""
    sys.stdin.buffer.read()
    end(mark)


def child_environment(**more: str) -> dict[str, str]:
    """The environment of a process that imports this package, wherever it starts."""
    paths = [str(PLACE), os.environ.get("PYTHONPATH", "")]
    # Logs are UTF-8, whatever the console can show.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONIOENCODING": "utf-8", **more}
