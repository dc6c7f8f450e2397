"""Signals to the pipeline: the first asks the stage at work to pause or stop, a second one ends it now."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from nbutils.core import pause
from nbutils.pipeline.processes import end

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPT_SECONDS = 10.0
"""How long a stage that cannot pause may take to end after an interrupt."""


class Signals:
    """What has been asked of the pipeline, and the stage that it has to be passed on to.

    SIGINT, SIGTERM and SIGHUP are taken from the moment of `listening` on: nbclient would answer them by ending the
    kernel after 5 s. Under `nohup` SIGHUP stays ignored, as it asks for.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.asked: signal.Signals | None = None
        self.ended = False
        self._kernel: int | None = None
        self._mark = ""
        self._run = Path()
        self._pausable = False
        self._timer: threading.Timer | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals while the block runs."""
        # An ignored SIGINT is taken all the same: shells ignore it for every job in the background of a script, where
        # whoever sends it to this very process means it.
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        before = {name: signal.signal(name, self._take) for name in CAUGHT if not (name == signal.SIGHUP and nohup)}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    @contextmanager
    def stage(self, run: Path, mark: str, pausable: bool) -> Iterator[None]:
        """Passes signals on to one stage while the block runs."""
        self._run, self._mark, self._pausable, self._kernel = run, mark, pausable, None
        try:
            yield
        finally:
            if self._timer:
                self._timer.cancel()
            self._timer, self._mark = None, ""

    def kernel_started(self, pid: int) -> None:
        """Tells which process (group) an interrupt goes to; one that was asked for meanwhile is passed on now."""
        self._kernel = pid
        if self.asked:
            self._pass_on()

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked = signal.Signals(number)
            if number == signal.SIGHUP:
                _let_go_of_terminal()
            self._announce()
            self._pass_on()
        elif self._mark and not self.ended:
            self._say("Ending the stage now.")
            self._end()

    def _announce(self) -> None:
        assert self.asked is not None
        if not self._mark:
            self._say(f"{self.asked.name}: stopping before the next stage.")
        elif self._pausable:
            self._say(
                f"{self.asked.name}: asking the stage to save a checkpoint and pause, "
                f"at most {pause.GRACE_SECONDS:.0f} s; once more ends it now."
            )
        else:
            self._say(f"{self.asked.name}: stopping the stage; once more ends it now.")

    def _pass_on(self) -> None:
        if not self._mark:
            return
        if self._pausable:
            pause.request(self._run)
            patience = pause.GRACE_SECONDS
        else:
            if self._kernel is None:
                return  # it is starting; kernel_started passes the interrupt on
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(self._kernel, signal.SIGINT)
            patience = INTERRUPT_SECONDS
        if self._timer is None:
            self._timer = threading.Timer(patience, self._end)
            self._timer.daemon = True
            self._timer.start()

    def _say(self, text: str) -> None:
        # From a thread: the signal may have come in the middle of a print, which can't be entered a second time.
        threading.Thread(target=self.say, args=(text,), daemon=True).start()

    def _end(self) -> None:
        self.ended = True
        end(self._mark, 0)


def _let_go_of_terminal() -> None:
    """The terminal is gone: what is printed from now on goes nowhere instead of failing."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if os.isatty(stream):
            os.dup2(nowhere, stream)
    os.close(nowhere)
