"""Items that share a run of words with a conversation of the data stage's input, so that they can be scored apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LABEL = re.compile(r"^(?P<task>.+) item (?P<number>\d+): «")


def flagged_items(ledger: Path, tasks: Mapping[str, Any]) -> dict[str, set[int]]:
    """Task → numbers of its items that the ledger of the data stage names as the reason why a row was dropped.

    Those rows were not trained on; their neighbours in the same source may still be close to the item. Tasks that the
    data stage did not look for have no entry.
    """
    if not ledger.is_file():
        return {}
    import pyarrow.parquet as pq

    rows = pq.read_table(ledger, columns=["fate", "detail"], filters=[("fate", "=", "contaminated")])
    found: dict[str, set[int]] = {}
    for detail in rows["detail"].to_pylist():
        match = _LABEL.match(detail or "")
        if match and match["task"] in tasks:
            found.setdefault(match["task"], set()).add(int(match["number"]))
    return found
