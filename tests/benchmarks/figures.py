"""`make bench` → figures: a history of 200,000 rows as notebook 03 draws it, every figure as PNG and SVG in two themes.

The seconds count from the rows in memory to the last file on the disk; reading `metrics.jsonl` stands beside them.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

ROWS = 200_000
TARGET = 5.0


def main() -> None:
    """Prints one JSON line."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from nbutils.core.files import read_jsonl
    from nbutils.core.history import History
    from nbutils.core.run.record import machine
    from nbutils.metrics.display import save_figures
    from tests.metrics.histories import history_rows

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "metrics.jsonl"
        log.write_text("".join(json.dumps(row) + "\n" for row in history_rows(ROWS)), encoding="utf-8")
        save_figures(History.of(history_rows(20)), folder / "first")  # matplotlib's imports are no part of it
        started = time.perf_counter()
        rows = read_jsonl(log)
        read = time.perf_counter()
        save_figures(History.of(rows), folder / "figures")
        drawn = time.perf_counter() - read
        files = len(list((folder / "figures").iterdir()))
    report = {"bench": "figures", "machine": machine(), "rows": ROWS, "files": files, "unit": "s"}
    seconds = {"seconds": round(drawn, 2), "target": TARGET, "read_seconds": round(read - started, 2)}
    print(json.dumps(report | seconds | {"met": drawn < TARGET}))


if __name__ == "__main__":
    main()
