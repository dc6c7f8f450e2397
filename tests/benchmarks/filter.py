"""`make bench` → filter: the data stage against `datasets.map` + `.filter`, on all two-speaker chitchat conversations.

The stock way encodes row by row with `apply_chat_template` and filters on length. Ours does that and splits, writes the
sets, decides duplicates and keeps the full ledger. Both read the same folder and must keep the same rows with the same
ids, or the exit status is 1. The ratio is ours / stock in conversations per second, the median over interleaved
repeats, in one process and in two; the second counts against the stock way with `num_proc=2`. `ratio_with_summary` adds
to our side alone what a run pays besides: up to 1,000 over-long conversations are read to their end, for what other
limits would cost, and the summary is written. That takes as long for these 4,018 conversations as for any more.

The line also says how many of chitchat's conversations share 13 words with an item of HellaSwag: nobody talked about it
in 2018, so these are false positives of the contamination check.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, concatenate_datasets, load_from_disk

from nbutils.data.fates import as_messages, judge
from nbutils.data.filter import filter_sources
from nbutils.data.row_filter import loaded_tokenizer
from nbutils.data.settings import DataSettings
from nbutils.data.sources import chitchat_conversations, open_source
from nbutils.data.summary import write_summary
from tests.benchmarks._measured import EVALDATA, WITHOUT_EVALDATA, median_ratio, medians, report, timed
from tests.data.hellaswag import hellaswag_task
from tests.data.making import make, settings_for

GIVEN = {"max_length": 1024, "eval_fraction": 0.08}
TARGETS = {1: 3.0, 2: 1.7}
REPEATS = 3

Kept = list[list[int]]


def main() -> None:
    """Prints one JSON line with the ratios; exits with 1 where the two ways keep different rows or ids."""
    datasets.disable_progress_bars()
    found = {"met": True, "same": True}
    with tempfile.TemporaryDirectory() as name, redirect_stdout(sys.stderr):  # what the stage says
        folder = Path(name)
        conversations = unique_conversations()
        conversations.save_to_disk(folder / "rows")
        make(folder / "run", [str(folder / "rows")], **GIVEN)  # the tokenizer, which both sides use
        for processes, target in TARGETS.items():
            settings = settings_for(folder / "run", [str(folder / "rows")], data_processes=processes, **GIVEN)
            numbers, same = compared(settings, len(conversations))
            found |= {f"{what}_{processes}": number for what, number in (numbers | {"target": target}).items()}
            found["met"] &= numbers["ratio"] >= target
            found["same"] &= same
        found["contamination"] = WITHOUT_EVALDATA or false_positives(folder)
    unit = "ratio: our conversations per second / stock's; rows_per_second: conversations"
    report("filter", unit=unit, conversations=len(conversations), **found)
    if not found["same"]:
        sys.exit("filter: the two ways keep different rows or ids")


def unique_conversations() -> Dataset:
    """The 4,018 conversations of two speakers, ended by the assistant, each with a first turn of its own."""
    judged = (judge(messages) for messages in chitchat_conversations() if len({role for role, _ in messages}) == 2)
    rows = [[(role, text or "…") for role, text in found.turns] for found in judged]
    rows = [[("user", f"({i}) {turns[0][1]}"), *turns[1:]] for i, turns in enumerate(rows)]
    return Dataset.from_list([{"messages": as_messages(turns)} for turns in rows])


def stock(settings: DataSettings) -> Kept:
    """The way of the libraries' own documentation."""
    tokenizer = loaded_tokenizer(str(settings.run_path / "data" / "tokenizer"))

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)}

    processes = settings.data_processes
    options = {"num_proc": processes if processes > 1 else None, "load_from_cache_file": False}
    rows = load_from_disk(settings.datasets[0].path).map(encode, **options)
    rows = rows.filter(lambda row: len(row["input_ids"]) <= settings.max_length, **options)
    return rows.with_format("arrow")["input_ids"].to_pylist()


def ours(settings: DataSettings) -> tuple[Kept, Callable[[], Any]]:
    """One pass of the data stage, train and eval sets put back into the order of rows; and what writes the summary."""
    folder = settings.run_path / "data"
    sources = [open_source(settings.datasets[0], False)]
    filtered = filter_sources(settings, sources, folder)
    sides = concatenate_datasets([load_from_disk(folder / side) for side in ("train", "eval")])
    table = sides.select_columns(["index", "input_ids"]).with_format("arrow")[:].sort_by("index")
    tokenizer = loaded_tokenizer(str(folder / "tokenizer"))
    summarise = partial(write_summary, folder, settings, sources, tokenizer, filtered, None)
    return table["input_ids"].to_pylist(), summarise


def compared(settings: DataSettings, rows: int) -> tuple[dict[str, float], bool]:
    """Median ratio of conversations per second over interleaved repeats, and whether the results were the same."""
    seconds, same = [], True
    for _ in range(REPEATS):
        theirs, expected = timed(stock, settings)
        mine, (kept, summarise) = timed(ours, settings)
        same &= kept == expected
        seconds.append((theirs, mine, mine + timed(summarise)[0]))
    their_rate, our_rate, whole_rate = (round(rows / side) for side in medians(seconds))
    found = {
        "ratio": median_ratio(seconds, 0, 1, 2),
        "ratio_with_summary": median_ratio(seconds, 0, 2, 2),
        "stock_rows_per_second": their_rate,
        "our_rows_per_second": our_rate,
        "our_rows_per_second_with_summary": whole_rate,
    }
    return found, same


def false_positives(folder: Path) -> dict[str, Any]:
    """Conversations of chitchat that the contamination check takes for HellaSwag, of those that got as far as it."""
    given = {"contamination_tasks": ["hellaswag"], "task_path": str(hellaswag_task(folder / "tasks", EVALDATA))}
    summary = make(folder / "talk", ["chitchat"], data_processes=0, **GIVEN, **given).summary
    items, fates = summary["contamination"], summary["fates"]
    wrong, judged = fates["contaminated"]["rows"], fates["contaminated"]["rows"] + fates["kept"]["rows"]
    return {
        "items": items["items"],
        "items_too_short": items["items_too_short"],
        "conversations": judged,
        "false_positives": wrong,
        "false_positive_rate": round(wrong / judged, 6),
    }


if __name__ == "__main__":
    main()
