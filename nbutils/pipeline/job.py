"""One notebook to execute, and what is learned while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbutils.pipeline.display import Display

AUTOSAVE_SECONDS = 30


class Stopped(Exception):
    """A signal came between two cells."""


@dataclass
class Job:
    """The first fields say what to do; those from `cell` on are filled in by the engine.

    `cell`: number of the code cell under way, from 1; `kernel_exit`: the dead kernel's exit status, negative for a
    signal; `kernel_said`: the last line of its standard error; `notebook`: the notebook as far as it was executed.
    """

    source: Path
    target: Path
    parameters: dict[str, Any]
    mark: str
    display: Display
    kernel_started: Callable[[int], None] = lambda pid: None
    stop: Callable[[], bool] = lambda: False
    allow_paused: bool = False
    cell_seconds: float | None = None
    autosave_seconds: float = AUTOSAVE_SECONDS
    cell: int | None = None
    kernel_exit: int | None = None
    kernel_said: str = ""
    notebook: Any = field(default=None, repr=False)
