"""`metrics.jsonl`, `samples.jsonl` and `progress.jsonl`: what a run writes about itself while it trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nbutils.core.files import append_jsonl, read_jsonl, write_text
from nbutils.core.torchrun import PROGRESS, tell

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


class Records:
    """The writer of rank 0; other ranks hold one with `active=False` that writes nothing."""

    def __init__(self, folder: Path, active: bool) -> None:
        self.folder = folder
        self.active = active

    def metric(self, row: dict[str, Any]) -> None:
        """Appends a row of metrics, and shows it to whoever follows the progress."""
        self._append(METRICS, "metric", row)

    def sample(self, row: dict[str, Any]) -> None:
        """Appends a sample reply."""
        self._append(SAMPLES, "sample", row)

    def progress(self, event: str, **facts: Any) -> None:
        """Appends an event for whoever follows the progress; it is no result."""
        if self.active:
            tell(self.folder, event, **facts)

    def rewind(self, step: int) -> int:
        """Drops rows beyond a step, which a resumed run makes again, and half-written ones; returns the sessions.

        At step 0 everything goes: the run starts from nothing.
        """
        sessions = 0
        for name in (METRICS, SAMPLES):
            path = self.folder / name
            rows = read_jsonl(path) if path.is_file() else []
            kept = [row for row in rows if step > 0 and row["step"] <= step]
            sessions = max([sessions, *(row["session"] for row in rows if row.get("kind") == "session" and step > 0)])
            if self.active:
                write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
        if self.active:
            write_text(self.folder / PROGRESS, "")
        return sessions

    def _append(self, name: str, event: str, row: dict[str, Any]) -> None:
        if self.active:
            append_jsonl(self.folder / name, row)
            append_jsonl(self.folder / PROGRESS, {"event": event} | row)
