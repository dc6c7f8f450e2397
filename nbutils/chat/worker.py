"""A thread that does one job after the other, so that the kernel's main thread stays free."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Worker:
    """Does one job at a time; `failed` hears of a job's error, `over` of its end, both in the worker's thread."""

    def __init__(self, failed: Callable[[Exception], None], over: Callable[[], None]) -> None:
        self._failed, self._over = failed, over
        self._thread: threading.Thread | None = None
        self._working = threading.Event()

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return self._working.is_set()

    def wait(self, seconds: float | None = None) -> None:
        """Waits until the worker is idle."""
        if self._thread is not None:
            self._thread.join(seconds)

    def start(self, job: Callable[[], None], *, begun: Callable[[], None]) -> None:
        """Starts a job once the one before has shown that it is done; `begun` hears that the worker is busy."""
        self.wait()
        self._working.set()
        begun()
        self._thread = threading.Thread(target=self._run, args=(job,), name="chat-writes", daemon=True)
        self._thread.start()

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self._failed(error)
        finally:
            self._working.clear()  # before the button is enabled: a click on it must not find a worker still busy
            self._over()
