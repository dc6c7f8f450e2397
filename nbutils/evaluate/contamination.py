"""Items that share a run of words with a conversation of the data stage's input, so that they can be scored apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.core.run.record import SCHEMA

_LABEL = re.compile(r"^(?P<task>.+) item (?P<number>\d+)(?:: «|$)")


def flagged_items(ledger: Path, tasks: Mapping[str, Any]) -> dict[str, set[int]]:
    """Task → numbers of its items that the ledger of the data stage names as the reason why a row was dropped.

    Those rows were not trained on; their neighbours in the same source may still be close to the item. Tasks that the
    data stage did not look for have no entry. A ledger from before `matched_items` names one item for each row.
    UserError for one of a newer schema.
    """
    if not ledger.is_file():
        return {}
    import pyarrow.parquet as pq

    schema = pq.read_schema(ledger)
    if int((schema.metadata or {}).get(b"schema", b"0")) > SCHEMA:
        raise UserError(f"{shown(ledger)} was written by a newer smallchat; update smallchat.")
    has_items = "matched_items" in schema.names
    columns = ["detail", *(["matched_items"] if has_items else [])]
    rows = pq.read_table(ledger, columns=columns, filters=[("fate", "=", "contaminated")]).to_pylist()
    found: dict[str, set[int]] = {}
    for row in rows:
        for label in row.get("matched_items") or [row["detail"] or ""]:
            match = _LABEL.match(label)
            if match and match["task"] in tasks:
                found.setdefault(match["task"], set()).add(int(match["number"]))
    return found
