"""`make bench` → train: useful tokens per second of ours, of the dense limit, and of the stock SFTTrainer.

Three ways in one process, in turn, ours first in every other round, on the same conversations and the same model: the
*dense limit* (a plain loop on the same (B, T) shapes filled with random ids), *ours*, and stock `SFTTrainer` (its
defaults besides CPU, fp32, batch 8, `assistant_only_loss`, no activation checkpointing): on the demo model with the
demo's token budgets (`--demo`), and on the reference architecture with conversations of up to 512 tokens
(`--reference`). `--ddp`: two processes of one thread against one process of two. Without an argument all three are
measured, and one JSON line is printed. What holds the ratios back: `shares`, of the seconds of our training, that
matrix products and the dearest other operations take (the rest is Python, and the profiler itself); the `seconds` of
each part of a step with two processes and with one; and `balance`, the ratio that two processes would have if they
exchanged nothing, since whole rows cannot be dealt out evenly. The exit status is 1 where answers differ: our first
loss from full cross-entropy's, the rows that stock was given from ours, or the losses of two processes from those of
one.
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_from_disk
from torch.profiler import ProfilerActivity, profile
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from nbutils.core.run.layout import Run
from nbutils.core.run.models import tiny_config
from nbutils.train.arguments import CHECKPOINTING, trainer_arguments
from nbutils.train.batches import BatchPlan, StepLoader
from nbutils.train.control import Budget, Records, StepControl
from nbutils.train.dataset import TokenRows
from nbutils.train.settings import TrainSettings
from nbutils.train.trainer import Job, SmallchatTrainer
from tests.benchmarks._measured import THREADS, median_ratio, medians, report, timed
from tests.builders import data_folder
from tests.train.runs import logged, small_settings, torchrun

TARGETS = {
    "demo": {"of_dense_limit": 0.951, "of_stock": 5.0},
    "ddp": {"of_threads": 0.9},
    "reference": {"of_stock": 3.0},
}
REFERENCE = {
    "vocab_size": 32_003,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
DEMO_TOKENS = (2048, 512)
"""Tokens of a step and of a micro-batch in `params/demo.yaml`."""
PRODUCT, SHOWN = re.compile(r"aten::(addmm|mm|bmm|_scaled_dot_product)"), 12
"""What is a matrix product, and how many kinds of operation are shown."""
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}{{ m.content | trim }}"
    "<|im_end|>{% endgeneration %}{{ '\\n' }}"  # a line's end behind a tag would be dropped
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endif %}{% endfor %}"
)


def main() -> None:
    """Measures the parts that are named (`--demo`, `--ddp`, `--reference`), or all three."""
    torch.set_num_threads(THREADS)
    asked = [name.removeprefix("--") for name in sys.argv[1:]] or list(PARTS)
    found = {name: PARTS[name]() | {"targets": TARGETS[name]} for name in asked}
    for part in found.values():
        part["met"] = all(part[ratio] >= target for ratio, target in part["targets"].items())
    unit = "ratios of useful (non-padding) tokens per second: ours / the other's"
    report("train", unit=unit, threads=THREADS, met=all(part["met"] for part in found.values()), **found)


def against_stock(*, reference: bool = False) -> dict[str, Any]:
    """Ours against the dense limit and the stock trainer."""
    limit, steps, rounds = (512, 2, 3) if reference else (1024, 16, 15)
    budgets = (2048, 2048) if reference else DEMO_TOKENS
    with tempfile.TemporaryDirectory() as run:
        settings = settings_of(Path(run), limit, steps, *budgets)
        speeds = [Round(settings, reference, number).speeds() for number in range(rounds)]
        shares = Round(settings, reference, 0).shares()
    ratios = {"of_dense_limit": median_ratio(speeds, 1, 0, 3), "of_stock": median_ratio(speeds, 1, 2, 2)}
    return ratios | over_rounds(speeds, "dense", "ours", "stock") | {"shares": shares}


def ddp_against_threads() -> dict[str, Any]:
    """Two DDP processes of one thread against one process of two threads: the worker as torchrun starts it."""
    steps, speeds = 40, []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(3):
            rows = []
            for processes in (2, 1):
                run = Path(temporary) / f"{processes}-{number}"
                settings = settings_of(run, 1024, steps, *DEMO_TOKENS).model_copy(update={"log_steps": steps})
                assert torchrun(settings, processes, OMP_NUM_THREADS=str(THREADS // processes)).wait() == 0
                # the first steps have rows of their own, so the last row is free of the warm-up
                rows.append(logged(run, "train")[-1])
            agree(*(row["loss"] for row in rows), 1e-3, "the losses of two processes and of one")
            speeds.append([row["tokens_per_second"] for row in rows])
        held = {"seconds": [row["seconds"] for row in rows], "balance": Round(settings, False, settings.seed).balance()}
    return {"of_threads": median_ratio(speeds, 0, 1, 3)} | over_rounds(speeds, "two_processes", "two_threads") | held


PARTS = {
    "demo": against_stock,
    "ddp": ddp_against_threads,
    "reference": lambda: against_stock(reference=True),
}


def over_rounds(speeds: Sequence[Sequence[float]], *ways: str) -> dict[str, Any]:
    """The median speed of each way."""
    typical = map(round, medians(speeds))
    return {"useful_tokens_per_second": dict(zip(ways, typical, strict=True)), "rounds": len(speeds)}


def agree(ours: float, theirs: float, tolerance: float, what: str) -> None:
    """Ends the benchmark with status 1 where two answers differ by more than a relative tolerance."""
    if not math.isclose(ours, theirs, rel_tol=tolerance):
        sys.exit(f"train: {what} differ: {ours} and {theirs}")


def settings_of(run: Path, limit: int, steps: int, per_step: int, per_microbatch: int) -> TrainSettings:
    """Settings of a short run without evaluations and checkpoints; makes its data."""
    data_folder(run, train=400, evaluation=4, turns=60, pieces=4093, max_length=limit)
    return small_settings(
        run, max_length=limit, max_steps=steps, tokens_per_step=per_step, tokens_per_microbatch=per_microbatch,
        learning_rate=1e-4, optimizer="adamw_torch", eval_steps=0, checkpoint_steps=0, sample_prompts=[],
        log_steps=10_000, processes=1,
    )  # fmt: skip


class Clock(TrainerCallback):
    """When optimizer steps ended; the first is a warm-up."""

    def __init__(self, after_first: Callable[[], None] = lambda: None) -> None:
        self.after_first = after_first
        self.ends = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if not self.ends:
            self.after_first()
        self.ends.append(time.perf_counter())

    def after_warm_up(self) -> float:
        """Seconds of all steps but the first."""
        return self.ends[-1] - self.ends[0]


class Round:
    """One order of the conversations, for each of the three ways with a fresh model."""

    def __init__(self, settings: TrainSettings, reference: bool, seed: int) -> None:
        self.settings, self.run = settings, settings.run_path
        length = settings.max_length
        large = LlamaConfig(max_position_embeddings=length, **REFERENCE)
        self.config = large if reference else tiny_config(4096, length, 4095, 4094)
        self.tokenizer = AutoTokenizer.from_pretrained(self.run / "data" / "tokenizer")
        self.rows = TokenRows.load(self.run / "data" / "train", "assistant")
        self.plan = BatchPlan(self.rows.lengths(), settings.tokens_per_step, settings.tokens_per_microbatch, seed)
        self.steps = self.plan.steps(0)[: settings.max_steps]
        self.useful = [int(self.plan.lengths[step].sum()) for step in self.steps]

    def speeds(self) -> tuple[float, float, float]:
        """Useful tokens per second of each way, measured one after the other."""
        expected = self.first_loss()
        ours = self.ours(expected) if self.plan.seed % 2 else None  # what runs first may find a cooler machine
        dense = self.dense()
        return dense, ours or self.ours(expected), self.stock()

    def model(self) -> LlamaForCausalLM:
        torch.manual_seed(0)
        return LlamaForCausalLM(self.config)

    def speed(self, clock: Clock) -> float:
        """Useful tokens per second; the warm-up counts as long as the mean of the other steps."""
        return sum(self.useful) / clock.after_warm_up() * (len(self.steps) - 1) / len(self.steps)

    @torch.no_grad()
    def first_loss(self) -> float:
        """Cross-entropy on full logits over the rows of one step, in nats a supervised token."""
        model, step, total = self.model(), self.steps[0], 0.0
        for row in step:
            batch = self.rows.tensors(np.array([row]))
            logits = model(input_ids=batch.input_ids).logits[0, batch.positions]
            total += torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum").item()
        return total / int(self.rows.supervised_counts()[step].sum())

    def shares(self) -> dict[str, float]:
        """Shares of our processor seconds that matrix products and the dearest other operations take."""
        expected, seconds = self.first_loss(), dict[str, float]()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            whole = 1e6 * timed(self.ours, expected)[0]
        for each in seen.key_averages():
            kind = "matrix products" if PRODUCT.search(each.key) else each.key
            seconds[kind] = seconds.get(kind, 0.0) + each.self_cpu_time_total
        dearest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:SHOWN]
        return {kind: round(seconds[kind] / whole, 3) for kind in dearest}

    def balance(self) -> float:
        """What one process has to compute, divided by twice what the busier of two has: padded tokens."""
        work = [
            [max(sum(map(self.plan.padded, rank)) for rank in self.plan.deal(step, ranks)) for ranks in (1, 2)]
            for step in self.steps
        ]
        alone, busier = np.sum(work, axis=0)
        return round(float(alone / busier / 2), 3)

    def dense(self) -> float:
        """A plain loop on random ids of our shapes, with as many labels as ours."""
        model = self.model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        batches = [[self.rows.tensors(batch) for batch in self.plan.deal(step, 1)[0]] for step in self.steps]
        for step in batches:
            for batch in step:
                batch.input_ids.random_(0, 4000)
        clock = Clock()
        for step in batches:
            for batch in step:
                hidden = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state.flatten(0, 1)
                logits = model.lm_head(hidden.index_select(0, batch.positions))
                torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum").backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            clock.on_step_end()
        return self.speed(clock)

    def ours(self, expected: float) -> float:
        """Our trainer for the same steps; its first loss has to be the expected one."""
        loader, records = StepLoader(self.rows, self.plan), Records(self.run, active=False)
        job = Job(Run(self.run), self.settings, {}, loader, self.rows, records, Budget(lambda: False))
        trainer = SmallchatTrainer(self.model(), self.tokenizer, trainer_arguments(self.settings, self.run), job)

        def check() -> None:
            loss = job.counters.window["loss"] / job.counters.window["supervised"]
            agree(loss, expected, 1e-4, "our first loss and cross-entropy's")

        clock = Clock(check)
        trainer.remove_callback(StepControl)  # nothing is logged or evaluated
        trainer.add_callback(clock)
        trainer.train()
        return self.speed(clock)

    def stock(self) -> float:
        """The stock trainer on the conversations that ours was given."""
        self.tokenizer.chat_template = TEMPLATE
        conversations = load_from_disk(self.run / "data" / "train").select_columns(["messages"])
        clock = Clock()
        trainer = SFTTrainer(
            model=self.model(),
            args=SFTConfig(
                output_dir=str(self.run / "stock"),
                use_cpu=True,
                bf16=False,
                per_device_train_batch_size=8,
                assistant_only_loss=True,
                max_length=self.settings.max_length,
                num_train_epochs=1,
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
                logging_strategy="no",
                **{CHECKPOINTING: False},
            ),
            train_dataset=conversations.select(np.concatenate(self.steps)),
            processing_class=self.tokenizer,
            callbacks=[clock],
        )
        useful = []
        collate = trainer.data_collator

        def counting(rows: list[dict[str, Any]]) -> Any:
            useful.append(sum(len(row["input_ids"]) for row in rows))
            return collate(rows)

        trainer.data_collator = counting
        trainer.train()
        agree(sum(useful), sum(self.useful), 0.01, "the tokens that stock and ours were given")  # it adds a "\n"
        return sum(useful[1:]) / clock.after_warm_up()


if __name__ == "__main__":
    main()
