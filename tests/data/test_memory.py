"""Memory stays flat as the input grows: the whole stage on 10,000 and on 100,000 rows, no two alike."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from nbutils.core.files import read_json
from tests.conftest import ROOT
from tests.data.making import chat, make, write_lines

WORDS = [f"word{number:04d}" for number in range(1_000)]
FEW, MANY = 10_000, 100_000


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Conversations of two turns with 150 words each; one in fifty is too long."""
    rng = random.Random(0)
    for number in range(count):
        asked, answered = (" ".join(rng.choices(WORDS, k=150)) for _ in "ab")
        yield chat(asked, answered * (10 if number % 50 == 0 else 1))


def peak(*arguments: str) -> float:
    """Peak memory in MiB of the stage and all its children, without what is mapped from files.

    Pages of files are the system's to take back: how many are there is chance. Shared ones are divided among sharers.
    """
    process = psutil.Popen([sys.executable, "-m", __name__, *arguments], cwd=ROOT)
    highest = 0.0
    while process.poll() is None:
        total = 0
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):  # it has just ended
                total += sum(part.pss for part in one.memory_maps() if part.path.startswith("["))
        highest = max(highest, total / 2**20)
        time.sleep(0.3)
    assert process.returncode == 0
    return highest


@pytest.mark.alone
@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="proportional memory is told by Linux alone")
def test_peak_memory_is_flat(tmp_path):
    peaks = {}
    for count in (FEW, MANY):
        path, run = tmp_path / f"{count}.jsonl", tmp_path / str(count)
        peaks[count] = peak(write_lines(path, rows(count)), str(run))
        assert read_json(run / "data" / "summary.json")["rows"] == count
    # One hash for each row is kept; 128 MiB of ids would not be let pass, nor the texts.
    assert peaks[MANY] <= 1.2 * peaks[FEW]


if __name__ == "__main__":
    path, run = sys.argv[1:]
    make(Path(run), [path], max_length=1024, eval_fraction=0.08, data_processes=2)
