"""One notebook to execute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbutils.pipeline.display import Display
from nbutils.pipeline.supervise import Supervisor

AUTOSAVE_SECONDS = 30


class StageFailed(Exception):
    """Why a notebook did not come to its end, in a sentence; `interrupted` where a signal may have brought it about."""

    def __init__(self, sentence: str, interrupted: bool = False) -> None:
        super().__init__(sentence)
        self.interrupted = interrupted


@dataclass
class Job:
    """The notebook, where its executed copy is written, and how it is executed."""

    source: Path
    target: Path
    parameters: dict[str, Any]
    supervisor: Supervisor
    display: Display
    allow_paused: bool = False
    cell_seconds: float | None = None
    autosave_seconds: float = AUTOSAVE_SECONDS
