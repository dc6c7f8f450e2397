"""Memory stays flat as the input grows: the whole stage on 10,000 and on 100,000 rows, no two alike."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import psutil
import pytest

from nbutils.core.run.models import train_bpe
from tests.conftest import ROOT
from tests.data.making import chat, make

WORDS = [f"word{number:04d}" for number in range(1_000)]
FEW, MANY = 10_000, 100_000


def write_rows(path: Path, count: int) -> None:
    """Conversations of two turns with 150 words each; one in fifty is too long."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            asked, answered = (" ".join(rng.choices(WORDS, k=150)) for _ in "ab")
            answered *= 1 + 9 * (number % 50 == 0)
            file.write(json.dumps(chat(asked, answered)) + "\n")


def peak(*arguments: str) -> float:
    """Peak memory in MiB of the stage and all its children, without what is mapped from files.

    Pages of files are the system's to take back: how many are there is chance. Shared ones are divided among sharers.
    """
    process = psutil.Popen([sys.executable, "-m", __name__, *arguments], cwd=ROOT)
    highest = 0.0
    while process.poll() is None:
        total = 0
        for one in (process, *process.children(recursive=True)):
            try:
                lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
            except OSError:  # it has just ended
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
        highest = max(highest, total / 2**10)
        time.sleep(0.3)
    assert process.returncode == 0
    return highest


@pytest.mark.alone
@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="proportional memory is told by Linux alone")
def test_peak_memory_is_flat(tmp_path):
    tokenizer, peaks = train_bpe([" ".join(WORDS)]), {}
    for rows in (FEW, MANY):
        path, run = tmp_path / f"{rows}.jsonl", tmp_path / str(rows)
        write_rows(path, rows)
        tokenizer.save_pretrained(run / "data" / "tokenizer")
        peaks[rows] = peak(str(path), str(run))
        assert json.loads((run / "data" / "summary.json").read_text())["rows"] == rows
    print(f"peak memory: {peaks[FEW]:.0f} MiB, {peaks[MANY]:.0f} MiB on {path.stat().st_size / 2**20:.0f} MiB of text")
    # One hash for each row is kept; 256 MiB of ids would not be let pass, nor the texts.
    assert peaks[MANY] <= 1.2 * peaks[FEW]


if __name__ == "__main__":
    path, run = sys.argv[1:]
    make(Path(run), [path], same_tokenizer=True, max_length=1024, eval_fraction=0.08, data_processes=2)
