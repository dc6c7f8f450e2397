"""How far the scoring has come: a bar in Jupyter that leaves nothing behind, elsewhere a line once in a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

from nbutils.core.jupyter import interactive

BAR_AFTER = 5.0
"""Seconds of scoring after which a bar appears."""
LINE_EVERY = 60.0
"""Seconds between two lines, where there is no bar."""


class Progress:
    """Counts requests while a block lasts; `say` takes the lines, `off` silences both."""

    def __init__(
        self, total: int, say: Callable[[str], None], *, off: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done, self.say, self.off, self.clock = total, 0, say, off, clock
        self._bar = interactive() and not off
        self._handle: Any = None
        self._started = clock()
        self._shown = self._started - (LINE_EVERY - BAR_AFTER if self._bar else 0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            from IPython.display import HTML

            self._handle.update(HTML(""))

    def update(self, count: int) -> None:
        """Counts `count` more requests; shows where that is due."""
        self.done += count
        now = self.clock()
        if self.off or now - self._shown < (1.0 if self._handle is not None else LINE_EVERY):
            return
        self._shown = now
        left = (now - self._started) / max(1, self.done) * (self.total - self.done)
        text = f"{self.done:,} of {self.total:,} requests ({self.done / self.total:.0%}), about {_span(left)} left"
        if not self._bar:
            self.say(text)
            return
        from IPython.display import HTML, display

        bar = HTML(f'<progress value="{self.done}" max="{self.total}" style="width:20em"></progress> {text}')
        if self._handle is None:
            self._handle = display(bar, display_id=True)
        else:
            self._handle.update(bar)


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
