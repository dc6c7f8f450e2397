"""`session.json` in the run folder: how the newest session of a bundle ended, for whoever waits for its output."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nbutils.core.record import SCHEMA, read_record, write_record

ENDING = "session.json"
DONE, PAUSED, FAILED, UNFINISHED = "done", "paused", "failed", "unfinished"


def write_ending(run: Path, stage: str, status: str, error: str = "") -> None:
    """Notes how a session ended, and when; a copy of an earlier session's note is replaced."""
    record = {"schema": SCHEMA, "stage": stage, "status": status, "time": datetime.now(UTC).isoformat()}
    write_record(run / ENDING, record | ({"error": error} if error else {}))


def read_ending(run: Path) -> dict[str, Any] | None:
    """The note of a run folder; None where the session ended before it could write one."""
    return read_record(run / ENDING)
