"""A few dropped rows for each reason, for a person to look at."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbutils.data.fates import KEPT, REASONS
from nbutils.data.sampling import Smallest

PER_REASON = 3
SHOWN_CHARACTERS = 160
SHOWN_MESSAGES = 4


class DropSamples:
    """Three rows for each reason, picked by `seed`, with the beginning of their text."""

    def __init__(self, seed: int) -> None:
        self.samples = {reason: Smallest(PER_REASON, seed) for reason in REASONS}
        self.rows: dict[str, dict[str, dict[str, Any]]] = {reason: {} for reason in REASONS}

    def add(self, result: pa.Table) -> None:
        """Looks at the dropped rows of one result."""
        dropped = result.select(["source", "index", "fate", "detail", "messages"])
        dropped = dropped.filter(pc.not_equal(dropped["fate"], KEPT))
        columns = (dropped[name].to_pylist() for name in ("source", "index", "fate", "detail"))
        for row, (source, index, fate, detail) in enumerate(zip(*columns, strict=True)):
            key = f"{source} row {index}"
            if self.samples[fate].offer(key):
                text = _beginning(dropped["messages"][row].as_py())
                self.rows[fate][key] = {"source": source, "index": index, "detail": detail, "text": text}

    def found(self) -> dict[str, list[dict[str, Any]]]:
        """Reason → rows, in the order in which reasons are looked for."""
        return {
            reason: [row for key, row in rows.items() if key in self.samples[reason].keys]
            for reason, rows in self.rows.items()
        }


def _beginning(messages: list[dict[str, str]]) -> str:
    lines = [f"{m['role']}: {_cut(' '.join(m['content'].split()))}" for m in messages[:SHOWN_MESSAGES]]
    more = len(messages) - SHOWN_MESSAGES
    return "\n".join(lines + ([f"… {more} more turns"] if more > 0 else []))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
