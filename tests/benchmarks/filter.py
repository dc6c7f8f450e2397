"""`make bench` → filter: the data stage against `datasets.map` + `.filter`, on all two-speaker chitchat conversations.

The stock way encodes row by row with `apply_chat_template` and filters on length. Ours does that and splits, writes the
sets, decides duplicates and keeps the full ledger. Both read the same folder and must keep the same rows with the same
ids. The ratio is ours / stock in conversations per second, the median over interleaved repeats, in one process and in
two; the second counts against the stock way with `num_proc=2`.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_LENGTH = 1024
TARGETS = {1: 3.0, 2: 1.7}
REPEATS = 3

Kept = list[list[int]]


def main() -> None:
    """Prints one JSON line with the ratios."""
    os.environ["TQDM_DISABLE"] = "1"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = unique_conversations()
        rows.save_to_disk(folder / "rows")
        settings = {n: settings_of(folder, n) for n in TARGETS}
        tokenizer = trained_tokenizer(settings[1])
        report: dict[str, Any] = {"bench": "filter", "conversations": len(rows), "met": True}
        for processes, target in TARGETS.items():
            report |= compared(folder, tokenizer, settings[processes], len(rows), processes, target)
            report["met"] &= report[f"ratio_{processes}"] >= target
    print(json.dumps(report))


def unique_conversations() -> Any:
    """The 4,018 conversations of two speakers, ended by the assistant, each with a first turn of its own."""
    from datasets import Dataset

    from nbutils.data import chitchat
    from nbutils.data.fates import judge
    from nbutils.data.work import as_messages

    judged = (judge(messages) for messages in chitchat.conversations() if len({role for role, _ in messages}) == 2)
    rows = [[(role, text or "…") for role, text in found.turns] for found in judged]
    rows = [[("user", f"({i}) {turns[0][1]}"), *turns[1:]] for i, turns in enumerate(rows)]
    return Dataset.from_list([{"messages": as_messages(turns)} for turns in rows])


def settings_of(folder: Path, processes: int) -> Any:
    """The demo's settings, over the folder of rows."""
    from nbutils.core.notebooks import notebook_path, parameters, spec
    from nbutils.data.settings import DataSettings

    values = {name: parameter.default for name, parameter in parameters(notebook_path(spec("data"))).items()}
    given = {"run_dir": str(folder / "run"), "datasets": [str(folder / "rows")], "data_processes": processes}
    return DataSettings.checked(values | given | {"max_length": MAX_LENGTH})


def trained_tokenizer(settings: Any) -> Any:
    """The tokenizer that the stage trains and saves; both sides use it."""
    from nbutils.data.sources import open_source
    from nbutils.data.tokenizer import make_tokenizer

    folder = settings.run_path / "data"
    folder.mkdir(parents=True)
    return make_tokenizer(settings, [open_source(settings.datasets[0], False)], folder)


def stock(folder: Path, tokenizer: Any, processes: int) -> Kept:
    """The way of the libraries' own documentation."""
    from datasets import load_from_disk

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)}

    options: dict[str, Any] = {"num_proc": processes if processes > 1 else None, "load_from_cache_file": False}
    rows = load_from_disk(folder / "rows").map(encode, **options)
    rows = rows.filter(lambda row: len(row["input_ids"]) <= MAX_LENGTH, **options)
    kept: Kept = rows.with_format("arrow")["input_ids"].to_pylist()
    return kept


def ours(settings: Any) -> Kept:
    """One pass of the data stage; train and eval sets put back into the order of rows."""
    from datasets import concatenate_datasets, load_from_disk

    from nbutils.data.driver import filter_sources
    from nbutils.data.sources import open_source

    folder = settings.run_path / "data"
    filter_sources(settings, [open_source(settings.datasets[0], False)], folder)
    sides = concatenate_datasets([load_from_disk(folder / side) for side in ("train", "eval")])
    table = sides.select_columns(["index", "input_ids"]).with_format("arrow")[:].sort_by("index")
    kept: Kept = table["input_ids"].to_pylist()
    return kept


def compared(folder: Path, tokenizer: Any, settings: Any, rows: int, processes: int, target: float) -> dict[str, Any]:
    """Median ratio of conversations per second over interleaved repeats; raises where the results differ."""
    sides: tuple[Callable[[], Kept], ...] = (
        lambda: stock(folder, tokenizer, processes),
        lambda: ours(settings),
    )
    seconds = []
    for _ in range(REPEATS):
        theirs, mine = (timed(side) for side in sides)
        assert theirs[1] == mine[1], "the two ways keep different rows or ids"
        seconds.append((theirs[0], mine[0]))
    their_rate, our_rate = (rows / statistics.median(side) for side in zip(*seconds, strict=True))
    return {
        f"ratio_{processes}": round(statistics.median(theirs / mine for theirs, mine in seconds), 2),
        f"target_{processes}": target,
        f"stock_rows_per_second_{processes}": round(their_rate),
        f"our_rows_per_second_{processes}": round(our_rate),
    }


def timed(side: Callable[[], Kept]) -> tuple[float, Kept]:
    """Seconds and result."""
    started = time.perf_counter()
    kept = side()
    return time.perf_counter() - started, kept


if __name__ == "__main__":
    main()
