"""`make bench` → figures: a history of 200,000 rows as notebook 03 draws it, every figure as PNG and SVG in two themes.

The seconds count from the rows in memory to the last file on the disk; reading `metrics.jsonl` stands beside them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from nbutils.core.files import read_jsonl, write_jsonl
from nbutils.core.history import History
from nbutils.metrics.display import save_figures
from tests.benchmarks._measured import report, timed
from tests.metrics.histories import history_rows

ROWS = 200_000
TARGET = 5.0


def main() -> None:
    """Prints one JSON line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "metrics.jsonl"
        write_jsonl(log, history_rows(ROWS))
        save_figures(History.of(history_rows(20)), folder / "first")  # matplotlib's imports are no part of it
        read, rows = timed(read_jsonl, log)
        drawn, _ = timed(lambda: save_figures(History.of(rows), folder / "figures"))
        files = len(list((folder / "figures").iterdir()))
    seconds = {"seconds": round(drawn, 2), "target": TARGET, "read_seconds": round(read, 2), "met": drawn < TARGET}
    report("figures", rows=ROWS, files=files, unit="s", **seconds)


if __name__ == "__main__":
    main()
