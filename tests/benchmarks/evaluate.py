"""`make bench` → evaluate: SharedPrefixLM against stock `hf` on SmolLM2-135M-Instruct, fp32, CPU.

Both sides score the same requests in one process with the same torch threads; stock runs at its best batch size of
1, 8 and 16. Each ratio is ours / stock, the median over interleaved repeats. Every log-likelihood is compared: within
1e-3 nats for a continuation, 1e-2 for a whole page, which sums thousands of tokens. What the demo's evaluation takes is
measured by `demo.py` beside this file.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from nbutils.evaluate.shared_prefix import SharedPrefixLM
from tests.benchmarks._measured import (
    EVALDATA,
    THREADS,
    WITHOUT_EVALDATA,
    median_ratio,
    medians,
    report,
    smollm2,
    timed,
)
from tests.evaluate.stock_tasks import requests_of, stock_tasks

ITEMS = {"hellaswag": 16, "sciq": 32, "wikitext": 2}
TARGETS = {"hellaswag": 0.65, "sciq": 0.40, "wikitext": 1.0}
REPEATS = 3
NATS = {"loglikelihood": 1e-3, "loglikelihood_rolling": 1e-2}
"""Largest difference of an answer from stock's, by type of request."""


def main() -> int:
    """Prints one JSON line with the ratio of each task; the exit status is 1 where an answer differs from stock's."""
    if WITHOUT_EVALDATA:
        report("evaluate", **WITHOUT_EVALDATA)
        return 0
    logging.disable(logging.WARNING)
    torch.set_num_threads(THREADS)
    model, tokenizer = smollm2()
    options = {"tokenizer": tokenizer, "max_length": 2048}
    stocks = [HFLM(model, batch_size=size, **options) for size in (1, 8, 16)]
    ours = SharedPrefixLM(model, **options)
    tasks = stock_tasks(EVALDATA)
    found = {}
    for name, items in ITEMS.items():
        requests = requests_of(tasks[name], items)
        half = requests[: max(1, len(requests) // 2)]
        stock = min(stocks, key=lambda lm: timed(answers, lm, half)[0])
        found[name] = compared(stock, ours, requests) | {"target": TARGETS[name], "items": items}
    same = all(part["same_answers"] for part in found.values())
    met = all(part["ratio"] <= part["target"] for part in found.values())
    unit = "seconds of ours / seconds of stock"
    report("evaluate", unit=unit, threads=THREADS, met=met, same_answers=same, **found)
    return int(not same)


def answers(lm: Any, requests: list[Any]) -> list[Any]:
    """Log-likelihoods of requests of one type."""
    found = getattr(lm, requests[0].request_type)(requests, disable_tqdm=True)
    return [each[0] if isinstance(each, tuple) else each for each in found]


def compared(stock: Any, ours: Any, requests: list[Any]) -> dict[str, Any]:
    """Median ratio of times over interleaved repeats, and the largest difference of a log-likelihood."""
    assert ours.strategy == "shared rows"
    seconds = []
    for _ in range(REPEATS):
        theirs, expected = timed(answers, stock, requests)
        mine, got = timed(answers, ours, requests)
        seconds.append((theirs, mine))
    worst = max(abs(e - g) for e, g in zip(expected, got, strict=True))
    stock_seconds, our_seconds = (round(side, 2) for side in medians(seconds))
    return {
        "ratio": median_ratio(seconds, 1, 0, 3),
        "stock_seconds": stock_seconds,
        "our_seconds": our_seconds,
        "stock_batch_size": stock.batch_size_per_gpu,
        "same_answers": worst <= NATS[requests[0].request_type],
        "largest_difference_nats": float(f"{worst:.1e}"),
    }


if __name__ == "__main__":
    sys.exit(main())
