"""Counts of rows and tokens by fate, while results come in."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbutils.data.fates import FATES


class Tally:
    """Rows and tokens by fate, rows read and rows taken by source, rows that lost a last user turn."""

    def __init__(self) -> None:
        self.fates = {fate: {"rows": 0, "tokens": 0} for fate in FATES}
        self.read: dict[str, int] = {}
        self.taken: dict[str, int] = {}
        self.trimmed_rows = 0

    def add(self, source: str, read: int, result: pa.Table) -> None:
        """Counts one result of the batch function, duplicates marked; of `read` rows it holds those taken."""
        self.read[source] = self.read.get(source, 0) + read
        self.taken[source] = self.taken.get(source, 0) + result.num_rows
        self.trimmed_rows += pc.sum(result["lost_last_user_turn"]).as_py() or 0
        grouped = result.select(["fate", "tokens"]).group_by("fate").aggregate([([], "count_all"), ("tokens", "sum")])
        for row in grouped.to_pylist():
            self.fates[row["fate"]]["rows"] += row["count_all"]
            self.fates[row["fate"]]["tokens"] += row["tokens_sum"] or 0

    def found(self) -> dict[str, Any]:
        """Everything counted; `tokens` of over-long rows is a lower bound, and 0 where no tokens were read.

        `rows` have a fate; `rows_not_taken` a source's `fraction` left out.
        """
        taken = sum(self.taken.values())
        return {
            "rows": taken,
            "rows_not_taken": sum(self.read.values()) - taken,
            "fates": self.fates,
            "trimmed_rows": self.trimmed_rows,
        }
