"""`make bench` → train: useful tokens per second of ours, of the dense limit, and of the stock SFTTrainer.

Three ways in one process, in turn, on the same conversations and the same model: the *dense limit* (a plain loop on the
same (B, T) shapes filled with random ids), *ours*, and stock `SFTTrainer` (its defaults besides CPU, fp32, batch 8,
`assistant_only_loss`, no activation checkpointing): on the demo model with the demo's token budgets (`--demo`), and on
the reference architecture with conversations of up to 512 tokens (`--reference`). `--ddp`: two processes of one thread
against one process of two. Without an argument all three are measured, and one JSON line is printed. The exit status is
1 where answers differ: our first loss from full cross-entropy's, the rows that stock was given from ours, or the losses
of two processes from those of one.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_from_disk
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from nbutils.core.files import read_jsonl
from nbutils.core.run.models import tiny_config
from nbutils.core.run.record import machine
from nbutils.train import worker
from nbutils.train.arguments import CHECKPOINTING, trainer_arguments
from nbutils.train.batches import BatchPlan, StepLoader
from nbutils.train.control import Budget, Records, StepControl
from nbutils.train.dataset import TokenRows
from nbutils.train.loss import IGNORED
from nbutils.train.trainer import Job, SmallchatTrainer
from tests.builders import data_folder
from tests.train.runs import SMALL, torchrun

THREADS = 2
TARGETS = {
    "demo": {"of_dense_limit": 0.85, "of_stock": 3.5},
    "ddp": {"of_threads": 0.8},
    "reference": {"of_stock": 3.0},
}
REFERENCE = {
    "vocab_size": 32_003,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}{{ m.content | trim }}"
    "<|im_end|>{% endgeneration %}{{ '\\n' }}"  # a line's end behind a tag would be dropped
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endif %}{% endfor %}"
)


def main() -> None:
    """Measures the parts that are named (`--demo`, `--ddp`, `--reference`), or all three."""
    torch.set_num_threads(THREADS)
    asked = [name.removeprefix("--") for name in sys.argv[1:]] or list(PARTS)
    found = {name: PARTS[name]() for name in asked}
    for name, part in found.items():
        part["targets"] = TARGETS[name]
        part["met"] = all(part[ratio] >= target for ratio, target in TARGETS[name].items())
    report = {
        "bench": "train",
        "unit": "ratios of useful (non-padding) tokens per second: ours / the other's",
        "machine": machine(),
        "threads": THREADS,
        "met": all(part["met"] for part in found.values()),
    }
    print(json.dumps(report | found))


def against_stock(*, reference: bool = False) -> dict[str, Any]:
    """Ours against the dense limit and the stock trainer, medians over rounds."""
    limit, steps, rounds = (512, 2, 2) if reference else (1024, 40, 5)
    budgets = (2048, 2048) if reference else (1024, 512)
    with tempfile.TemporaryDirectory() as temporary:
        settings = settings_of(Path(temporary), limit, steps, *budgets)
        measured = [one_round(settings, Path(temporary), reference, number) for number in range(rounds)]
    speeds = (round(statistics.median(column)) for column in zip(*measured, strict=True))
    return {
        "of_dense_limit": round(statistics.median(ours / dense for dense, ours, _ in measured), 3),
        "of_stock": round(statistics.median(ours / stock for _, ours, stock in measured), 2),
        "useful_tokens_per_second": dict(zip(("dense", "ours", "stock"), speeds, strict=True)),
        "rounds": rounds,
    }


def ddp_against_threads() -> dict[str, Any]:
    """Two DDP processes of one thread against one process of two threads: the worker as torchrun starts it."""
    steps, rounds, speeds = 60, 3, []
    with tempfile.TemporaryDirectory() as temporary:
        for _ in range(rounds):
            pair, losses = [], []
            for processes in (2, 1):
                run = Path(temporary) / f"{processes}-{len(speeds)}"
                settings = settings_of(run, 1024, steps, 1024, 512).model_copy(update={"log_steps": steps})
                assert torchrun(settings, processes, OMP_NUM_THREADS=str(THREADS // processes)).wait() == 0
                # the first steps have rows of their own, so the last row is free of the warm-up
                rows = [row for row in read_jsonl(run / "train" / "metrics.jsonl") if row["kind"] == "train"]
                pair.append(rows[-1]["tokens_per_second"])
                losses.append(rows[-1]["loss"])
            agree(*losses, 1e-3, "the losses of two processes and of one")
            speeds.append(pair)
    return {
        "of_threads": round(statistics.median(two / one for two, one in speeds), 3),
        "useful_tokens_per_second": dict(
            zip(("two_processes", "two_threads"), map(statistics.median, zip(*speeds, strict=True)), strict=True)
        ),
        "rounds": rounds,
    }


PARTS = {
    "demo": against_stock,
    "ddp": ddp_against_threads,
    "reference": lambda: against_stock(reference=True),
}


def agree(ours: float, theirs: float, tolerance: float, what: str) -> None:
    """Ends the benchmark with status 1 where two answers differ by more than a relative tolerance."""
    if not math.isclose(ours, theirs, rel_tol=tolerance):
        sys.exit(f"train: {what} differ: {ours} and {theirs}")


def settings_of(run: Path, limit: int, steps: int, per_step: int, per_microbatch: int) -> worker.TrainSettings:
    """Settings of a short run without evaluations and checkpoints; makes its data."""
    data_folder(run, train=400, evaluation=4, turns=60, pieces=4093, max_length=limit)
    return worker.TrainSettings(
        run_dir=str(run),
        **SMALL
        | {"tokens_per_step": per_step, "tokens_per_microbatch": per_microbatch, "max_steps": steps}
        | {"max_length": limit, "learning_rate": 1e-4, "trainer_options": {}}
        | {"eval_steps": 0, "checkpoint_steps": 0, "sample_prompts": [], "log_steps": 10_000, "processes": 1},
    )


def one_round(settings: worker.TrainSettings, run: Path, reference: bool, seed: int) -> tuple[float, float, float]:
    """Useful tokens per second of each way, measured one after the other."""
    rows = TokenRows.load(run / "data" / "train", "assistant")
    plan = BatchPlan(rows.lengths(), settings.tokens_per_step, settings.tokens_per_microbatch, seed)
    steps = plan.steps(0)[: settings.max_steps]
    useful = sum(int(plan.lengths[step].sum()) for step in steps)
    expected = first_loss(model_of(settings, reference), rows, plan, steps[0])
    seconds = dense(model_of(settings, reference), rows, plan, steps), ours(settings, run, reference, plan, expected)
    return useful / seconds[0], useful / seconds[1], stock(settings, run, reference, np.concatenate(steps), useful)


def model_of(settings: worker.TrainSettings, reference: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    tiny = tiny_config(4096, settings.max_length, 4095, 4094)
    config = LlamaConfig(max_position_embeddings=settings.max_length, **REFERENCE) if reference else tiny
    return LlamaForCausalLM(config)


@torch.no_grad()
def first_loss(model: LlamaForCausalLM, rows: TokenRows, plan: BatchPlan, step: np.ndarray) -> float:
    """Cross-entropy on full logits over the rows of one step, in nats a supervised token."""
    total = 0.0
    for row in step:
        batch = rows.tensors(np.array([row]))
        logits = model(input_ids=batch.input_ids).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, batch.labels[0, 1:], reduction="sum").item()
    return total / int(rows.supervised_counts()[step].sum())


def dense(model: LlamaForCausalLM, rows: TokenRows, plan: BatchPlan, steps: list) -> float:
    """Seconds of a plain loop on random ids of our shapes, with as many labels as ours."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batches = [[rows.tensors(batch) for batch in plan.deal(step, 1)[0]] for step in steps]
    for step in batches:
        for batch in step:
            batch.input_ids.random_(0, 4000)
    clock = Clock()
    for step in batches:
        for batch in step:
            hidden = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state[:, :-1]
            labels = batch.labels[:, 1:]
            kept = labels != IGNORED
            torch.nn.functional.cross_entropy(model.lm_head(hidden[kept]), labels[kept], reduction="sum").backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.step()
    return clock.total(len(steps))


class Clock:
    """Seconds of optimizer steps; the first, a warm-up, is replaced by the mean of the others."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def step(self) -> None:
        self.times.append(time.perf_counter())

    def total(self, steps: int) -> float:
        return (self.times[-1] - self.times[1]) * steps / (len(self.times) - 2)


class ClockCallback(TrainerCallback):
    def __init__(self, after_first: Callable[[], None] = lambda: None) -> None:
        self.clock = Clock()
        self.after_first = after_first

    def on_train_begin(self, args, state, control, **kwargs):
        self.clock = Clock()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.after_first()
        self.clock.step()


def ours(settings: worker.TrainSettings, run: Path, reference: bool, plan: BatchPlan, expected: float) -> float:
    """Seconds of our trainer for the same steps; its first loss has to be the expected one."""
    rows = TokenRows.load(run / "data" / "train", "assistant")
    job = Job(settings, {}, StepLoader(rows, plan), rows, Records(run, active=False), Budget(lambda: False))
    tokenizer = worker.AutoTokenizer.from_pretrained(run / "data" / "tokenizer")
    trainer = SmallchatTrainer(model_of(settings, reference), tokenizer, trainer_arguments(settings, run), job)

    def check() -> None:
        agree(
            job.counters.window["loss"] / job.counters.window["supervised"],
            expected,
            1e-4,
            "our first loss and cross-entropy's",
        )

    timer = ClockCallback(check)
    trainer.remove_callback(StepControl)  # nothing is logged or evaluated
    trainer.add_callback(timer)
    trainer.train()
    return timer.clock.total(settings.max_steps)


def stock(settings: worker.TrainSettings, run: Path, reference: bool, picked: np.ndarray, useful: int) -> float:
    """Useful tokens per second of the stock trainer on the conversations that ours was given, `useful` tokens."""
    tokenizer = worker.AutoTokenizer.from_pretrained(run / "data" / "tokenizer")
    tokenizer.chat_template = TEMPLATE
    conversations = load_from_disk(str(run / "data" / "train")).select_columns(["messages"]).select(picked)
    args = SFTConfig(
        **{
            "output_dir": str(run / "stock"),
            "use_cpu": True,
            "bf16": False,
            "per_device_train_batch_size": 8,
            "assistant_only_loss": True,
            CHECKPOINTING: False,
            "max_length": settings.max_length,
            "num_train_epochs": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_strategy": "no",
        }
    )
    timer, counter = ClockCallback(), CountTokens()
    trainer = SFTTrainer(
        model=model_of(settings, reference), args=args, train_dataset=conversations, processing_class=tokenizer
    )
    trainer.data_collator = counter.around(trainer.data_collator)
    trainer.add_callback(timer)
    trainer.train()
    agree(sum(counter.useful), useful, 0.01, "the tokens that stock and ours were given")  # its template adds a "\n"
    return sum(counter.useful[1:]) / (timer.clock.times[-1] - timer.clock.times[1])  # the warm-up step left out


class CountTokens:
    """Counts the non-padding tokens of each batch that a collator makes."""

    def __init__(self) -> None:
        self.useful: list[int] = []

    def around(self, collator):
        def collate(rows):
            self.useful.append(sum(len(row["input_ids"]) for row in rows))
            return collator(rows)

        return collate


if __name__ == "__main__":
    main()
