"""Made-up training histories, and run folders around them."""

import math
import random
from collections.abc import Callable
from pathlib import Path

from nbutils.core.files import write_json, write_jsonl
from nbutils.core.run.record import outputs_of

SECONDS = {"data": 0.02, "forward_backward": 0.7, "optimizer": 0.1, "evaluation": 0.05, "checkpoint": 0.01}


def falling(fraction: float) -> float:
    """A loss that falls from 8.3 to 3.8 while a run goes from 0 to 1."""
    return 3.8 + 4.5 * math.exp(-6 * fraction)


def session(number=1, step=0) -> dict:
    return {"kind": "session", "session": number, "step": step, "world_size": 2, "time": "2026-11-01T10:00:00"}


def evaluation(step: int, loss: float) -> dict:
    return {"kind": "eval", "step": step, "epoch": 0.0, "eval_loss": loss, "eval_token_accuracy": 0.25,
            "supervised_tokens": 12000, "seconds": 2.0}  # fmt: skip


def history_rows(
    n=60,
    *,
    loss: Callable[[float], float] = falling,
    eval_loss: Callable[[float], float] | None = falling,
    noise=0.05,
    **columns,
) -> list[dict]:
    """`n` log rows, one for each ten steps, and an evaluation every 10 rows; `columns` replace what rows hold."""
    random.seed(0)
    rows = [session()]
    if eval_loss:
        rows.append(evaluation(0, eval_loss(0.0)))
    for i in range(1, n + 1):
        fraction, step = i / n, i * 10
        rows.append(
            {
                "kind": "train", "step": step, "epoch": fraction, "loss": loss(fraction) + random.gauss(0, noise),
                "token_accuracy": 0.28 * (1 - math.exp(-4 * fraction)), "learning_rate": 1e-3 * (1 - fraction),
                "grad_norm": 0.6 + 2 * math.exp(-9 * fraction), "supervised_tokens": step * 1000,
                "total_tokens": step * 2000, "tokens_per_second": 9000.0 + i % 7, "mfu": 0.4,
                "padding": 0.01, "peak_memory_gib": 0.8, "skipped_steps": 0, "seconds": SECONDS, "elapsed": i * 0.9,
                "session": 1,
            } | columns
        )  # fmt: skip
        if eval_loss and (i % 10 == 0 or i == n):
            rows.append(evaluation(step, eval_loss(fraction)))
    return rows


def write_training(run: Path, rows: list[dict], *, eval_hash: str = "a" * 64, **settings) -> Path:
    """The files of a finished training stage that the metrics stage reads."""
    folder = run / "train"
    write_jsonl(folder / "metrics.jsonl", rows)
    steps = rows[-1]["step"]
    derived = {"world_size": 2, "precision": "fp32", "device": "cpu", "steps": steps, "steps_per_epoch": steps}
    given = {"run_dir": str(run), "learning_rate": 1e-3, "epochs": 1.0, "seed": 0} | settings
    machine = {"platform": "Linux", "processor": "x86_64", "cores": 4, "memory_gib": 31.0}
    data = {"eval_hash": eval_hash}
    found = {"schema": 1, "settings": given, "derived": derived, "data": data, "machine": machine}
    write_json(folder / "settings.json", found)
    write_done(folder)
    return run


def write_done(folder: Path, **changes):
    """The record that makes a stage's folder count as done, with the hashes of what lies in it."""
    versions = {"python": "3.11", "smallchat": "0.1.0", "torch": "2.13.0"}
    record = {"schema": 1, "stage": folder.name, "status": "done", "key": "made up", "parts": {}, "facts": {},
              "parameters": {}, "seconds": 1.0, "work_seconds": 1.0, "started": "2026-11-01T10:00:00+00:00",
              "versions": versions, "git_commit": "0" * 40, "outputs": outputs_of(folder)}  # fmt: skip
    write_json(folder / "stage.json", record | changes)
