"""Memory stays flat as the input grows: the whole stage on 3 and on 30 copies of chitchat, each copy unique."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from nbutils.core.run.models import tiny_config, train_bpe
from nbutils.data import chitchat
from nbutils.data.row_filter import as_messages

STAGE = """
import sys
from pathlib import Path
from tests.data.making import DEFAULTS, settings_for
from nbutils.data.filter import filter_sources
from nbutils.data.sources import open_source
from nbutils.data.summary import write_summary
from nbutils.data.tokenizer import make_tokenizer


settings = settings_for(
    Path(sys.argv[2]), [sys.argv[1]], base_model=sys.argv[3], max_length=1024, eval_fraction=0.08, data_processes=2
)
folder = settings.run_path / "data"
folder.mkdir(parents=True)
sources = [open_source(spec, False) for spec in settings.datasets]
tokenizer = make_tokenizer(settings, sources, folder)
write_summary(folder, settings, sources, tokenizer, filter_sources(settings, sources, folder), None)
"""


def write_copies(path: Path, copies: int) -> int:
    """The two-speaker conversations, each copy with a first turn of its own; returns how many."""
    rows = [turns for turns in chitchat.conversations() if len({role for role, _ in turns}) == 2]
    with path.open("w") as file:
        for copy in range(copies):
            for number, turns in enumerate(rows):
                own = [("user", f"({copy}, {number}) {turns[0][1]}"), *turns[1:]]
                file.write(json.dumps({"messages": as_messages(own)}) + "\n")
    return copies * len(rows)


def peak(program: str, *arguments: str) -> float:
    """Peak memory in MiB of a program and all its children: shared pages are divided among those who share them."""
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=Path(__file__).resolve().parents[2])
    highest = 0.0

    def watch() -> None:
        nonlocal highest
        while process.poll() is None:
            total = 0
            for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
                try:
                    total += one.memory_full_info().pss
                except psutil.Error:
                    continue
            highest = max(highest, total / 2**20)
            time.sleep(0.3)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.wait() == 0
    watcher.join()
    return highest


@pytest.mark.alone
@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.skipif(sys.platform != "linux", reason="proportional memory is told by Linux alone")
def test_peak_memory_is_flat(tmp_path):
    """With a tokenizer that is there already: training one takes most of the time (with it the ratio held as well)."""
    texts = [text for turns in chitchat.conversations() for _, text in turns]
    base = train_bpe(texts)
    base.save_pretrained(tmp_path / "base")
    tiny_config(len(base), 1024, base.pad_token_id, base.eos_token_id).save_pretrained(tmp_path / "base")
    peaks = {}
    for copies in (3, 30):
        path = tmp_path / f"{copies}.jsonl"
        rows = write_copies(path, copies)
        peaks[copies] = peak(STAGE, str(path), str(tmp_path / f"run{copies}"), str(tmp_path / "base"))
        summary = json.loads((tmp_path / f"run{copies}" / "data" / "summary.json").read_text())
        assert summary["rows"] == rows
    print(f"peak memory: {peaks[3]:.0f} MiB on 3 copies, {peaks[30]:.0f} MiB on 30 ({peaks[30] / peaks[3]:.2f} times)")
    assert peaks[30] <= 1.3 * peaks[3]
