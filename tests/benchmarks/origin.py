"""`make bench` → origin: the index of the demo's training rows, made by the command, and replies traced in it.

Seconds and memory are the whole command's, imports included (`again`: with the index there); bytes are the index's on
the disk. Half of the replies of 200 tokens are made of what training rows say, which has to be found whole, or the exit
status is 1; the others of what held-out rows say. With a number as its argument the rows are taken so many times, each
time with other words at one place in ten: `origin.py 36` has 30 million tokens.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from nbutils.core.files import KAGGLE, resolve
from nbutils.core.origin.index import CACHE, MIN_WORDS, WORD, Index, words_in
from nbutils.core.run.layout import Run
from tests.benchmarks._measured import medians, report, timed
from tests.conftest import ROOT
from tests.data.making import make
from tests.metrics.histories import write_done

TOKENS = 200
REPLIES = 10
TARGETS = {"seconds": 5.0, "trace_ms": 20.0}


def main(times: int = 1) -> int:
    """Prints one JSON line; the exit status is 1 where a training row's own words are not found."""
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as name, redirect_stdout(sys.stderr):  # what the data stage says
        os.environ[KAGGLE] = name  # the index is kept below it
        (Path(name) / "working").mkdir()
        run = Run(Path(name) / "run")
        made = make(run.path, ["chitchat"], max_length=1024, eval_fraction=0.08)
        rows = made.rows("train")
        Dataset.from_list([*copies(rows, times)]).save_to_disk(made.folder / "train")
        write_done(made.folder)
        (seconds, peak), (again, _) = timed(command, run), timed(command, run)
        index = Index(run)
        learnt, held_out = (replies(made.tokenizer, side) for side in (rows, made.rows("eval")))
        whole = all(is_found(index, reply) for reply in learnt)
        (trace,) = medians([timed(index.trace, " ".join(reply))[:1] for reply in learnt + held_out])
        size = sum(file.stat().st_size for file in resolve(CACHE).rglob("*") if file.is_file())
    millions = times * sum(len(row["input_ids"]) for row in rows) / 1e6
    found: dict[str, Any] = {"seconds": round(seconds, 2), "trace_ms": round(1000 * trace, 2)}
    found |= {"met": times > 1 or all(found[name] < target for name, target in TARGETS.items()), "target": TARGETS}
    found |= {"again": round(again, 2), "million_tokens": round(millions, 2), "found_whole": whole}
    found |= {"peak_mib": peak // 1024, "mib_per_million": round(size / millions / 2**20, 2)}
    report("origin", unit="s, ms for a reply of 200 tokens, MiB", **found)
    return int(not whole)


def copies(rows: list[dict[str, Any]], times: int) -> Iterator[dict[str, Any]]:
    """The rows, and then again and again with other words at one place in ten."""
    words = " ".join(message["content"] for row in rows for message in row["messages"]).split()
    draw = random.Random(0)

    def changed(word: str) -> str:
        return word if draw.random() < 0.9 else draw.choice(words)

    for copy in range(times):
        for row in rows:
            messages = row["messages"]
            if copy:
                messages = [m | {"content": " ".join(map(changed, m["content"].split()))} for m in messages]
            yield {"source": row["source"], "index": row["index"], "messages": messages}


def is_found(index: Index, reply: list[str]) -> bool:
    """Whether each message of a reply that is long enough is in a span."""
    spans = [words_of(span.text) for span in index.trace(" ".join(reply))]
    return all(any(words_of(text) in span for span in spans) for text in reply if words_in(text) >= MIN_WORDS)


def words_of(text: str) -> str:
    """A text's words alone."""
    return " ".join(WORD.findall(text))


def command(run: Run) -> int:
    """A text of seven words looked for by the command; returns the KiB that it took at most."""
    code = "import sys; from nbutils.cli import main; main(sys.argv[1:]); print(open('/proc/self/status').read())"
    line = [sys.executable, "-c", code, "origin", str(run.path), "--text", "one two three four five six seven"]
    said = subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return int(re.findall(r"VmHWM:\s*(\d+)", said)[0])  # what `getrusage` says counts the process that started it too


def replies(tokenizer: Any, rows: list[dict[str, Any]]) -> list[list[str]]:
    """Messages of different rows that make up a reply of 200 tokens, for each reply."""
    texts = iter([row["messages"][-1]["content"] for row in rows])
    found: list[list[str]] = [[] for _ in range(REPLIES)]
    for reply in found:
        while len(tokenizer(" ".join(reply))["input_ids"]) < TOKENS:
            reply.append(next(texts))
    return found


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
