"""Still needed? Each part of the stock trainer that ours replaces, seen doing what it is replaced for.

A failure here is good news: the installed trl or transformers no longer does it. The message names the module in
`nbutils/train/` that can then go, or has to change. Measured with trl 1.16 and transformers 5.23.
"""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from datasets import Dataset, load_from_disk
from transformers import AutoTokenizer, Trainer, trainer_jit_checkpoint
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from nbutils.core.run.models import tiny_model
from nbutils.train.arguments import CHECKPOINTING
from nbutils.train.batches import BatchPlan
from tests.builders import data_folder

QUIET: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_strategy": "no",
    CHECKPOINTING: False,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return data_folder(tmp_path_factory.mktemp("stock"), train=48, evaluation=8, turns=20, max_length=2000)


@pytest.fixture
def tokenizer(data):
    return AutoTokenizer.from_pretrained(data / "tokenizer")


@pytest.fixture
def stock(tmp_path, tokenizer):
    """Makes a stock SFTTrainer around `tiny`, with its own defaults besides the CPU and quiet."""

    def make(train: Dataset, evaluation: Dataset | None = None, **options: Any) -> SFTTrainer:
        return SFTTrainer(
            model=tiny_model(tokenizer, 2048, 0),
            args=SFTConfig(**{"output_dir": str(tmp_path / "out"), **QUIET, **options}),
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=tokenizer,
        )

    return make


def labelled(folder: Path) -> Dataset:
    """Tokenised rows as the stock trainer takes them, with labels on the assistant's tokens."""
    rows = load_from_disk(str(folder))
    labels = [np.where(row["supervised"], row["input_ids"], -100).tolist() for row in rows]
    return rows.select_columns("input_ids").add_column("labels", labels)


def gone(module: str, what: str) -> str:
    return (
        f"The stock trainer {what}: nbutils/train/{module} may be able to go; compare, and remove what is not needed."
    )


def test_stock_slices_long_conversations_and_loses_their_end(data, stock, tokenizer):
    messages = load_from_disk(str(data / "train")).select_columns(["messages"])
    end = tokenizer.eos_token_id
    whole = [tokenizer.apply_chat_template(row["messages"], tokenize=True)["input_ids"] for row in messages]
    prepared = [row["input_ids"] for row in stock(messages, max_length=128).train_dataset]
    assert any(len(ids) > 128 for ids in whole) and len(prepared) == len(whole)
    cut = [ids for ids in prepared if len(ids) == 128]
    assert cut and any(end not in ids[-2:] for ids in cut), gone("../data/fates.py (too_long)", "keeps ends now")


def test_stock_pads_batches_of_random_lengths_wants_a_mask_and_installs_its_fused_head(data, stock):
    train = labelled(data / "train")
    trainer = stock(train, max_length=None)
    batches = list(trainer.get_train_dataloader())
    useful = sum(int(b["attention_mask"].sum()) for b in batches) / sum(b["input_ids"].numel() for b in batches)
    ours = 1 - BatchPlan(np.array([len(ids) for ids in train["input_ids"]]), 4096, 2048, 0).padding()
    assert useful < 0.75 < ours, gone("batches.py", f"makes batches of {useful:.0%} useful tokens, ours {ours:.0%}")
    with pytest.raises(ValueError, match="attention_mask"):
        trainer.compute_loss(trainer.model, {name: batches[0][name] for name in ("input_ids", "labels")})
        pytest.fail(gone("trainer.py (compute_loss)", "takes right-padded rows without a mask now"))
    assert "fused_lm_head" in inspect.signature(trainer.model.forward, follow_wrapped=False).parameters, gone(
        "loss.py", "does not install a fused head any more"
    )
    switches = [name for name in SFTConfig.__dataclass_fields__ if "fused" in name or "lm_head" in name]
    assert switches == [], gone("loss.py", f"has a switch for its fused head: {switches}")


def test_stock_flattens_rows_into_one(data, stock):
    batch = next(iter(stock(labelled(data / "train"), max_length=None, padding_free=True).get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 1 and int(batch["cu_seq_lens_q"].numel()) == 9, gone(
        "batches.py", "no longer flattens the 8 rows of a batch into one of (B x L)^2 attention"
    )


def test_stock_accuracy_and_loss_depend_on_the_batch_size(data, stock):
    held_out = labelled(data / "eval")
    sizes = [{"max_length": None, "per_device_eval_batch_size": size} for size in (1, 3)]
    found = [stock(held_out, held_out, **options).evaluate() for options in sizes]
    for name in ("eval_loss", "eval_mean_token_accuracy"):
        assert not math.isclose(found[0][name], found[1][name], abs_tol=1e-6), gone(
            "evaluation.py", f"gives the same {name} for any batch size now"
        )


def seen(trainer: SFTTrainer) -> list[list[int]]:
    """The rows that a trainer's collator is asked for, batch by batch."""
    batches: list[list[int]] = []
    own = trainer.data_collator

    def collate(rows):
        batches.append([row["input_ids"][0] for row in rows])
        return own(rows)

    trainer.data_collator = collate
    return batches


def numbered(count: int) -> Dataset:
    """Rows of different lengths whose first token is their number."""
    return Dataset.from_list([{"input_ids": [i, *range(5, 7 + i % 7)]} for i in range(count)])


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_only_random_order_resumes_where_it_was(stock, tmp_path, strategy):
    """Two epochs of four steps; a checkpoint after step 6, from which the rows of the last two steps should follow."""
    options = {
        "max_length": None,
        "train_sampling_strategy": strategy,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 6,
        "learning_rate": 1e-4,
    }
    whole = stock(numbered(16), **options)
    batches = seen(whole)
    whole.train()
    again = stock(numbered(16), **options)
    resumed = seen(again)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))
    assert len(batches) == 8
    assert (resumed[-2:] == batches[-2:]) is (strategy == "random"), gone(  # so it is the strategy, and not this test
        "batches.py (StepLoader)", "resumes group_by_length exactly now (check several processes, too)"
    )


def test_stock_checkpoints_are_written_in_place_and_taken_unchecked(stock, tmp_path, monkeypatch):
    trainer = stock(numbered(8), max_length=None, max_steps=2, save_strategy="steps", save_steps=1, learning_rate=1e-4)

    def killed(*_: Any) -> None:
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt  # as if the process had ended here

    monkeypatch.setattr(trainer, "_save_scaler", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    half = tmp_path / "out" / "checkpoint-2"
    assert half.is_dir() and not (half / "trainer_state.json").exists(), gone(
        "checkpoints.py", "writes checkpoints under another name first"
    )
    assert get_last_checkpoint(str(tmp_path / "out")) == str(half), gone("checkpoints.py", "passes over half ones now")


def test_stock_has_no_time_budget_and_each_rank_pauses_for_itself():
    budget = [n for n in SFTConfig.__dataclass_fields__ if any(word in n for word in ("budget", "minutes", "max_time"))]
    assert budget == [], gone("control.py", f"has a time budget: {budget}")
    source = inspect.getsource(trainer_jit_checkpoint)
    assert "SIGTERM" in source and not any(word in source for word in ("all_reduce", "broadcast", "gather(")), gone(
        "control.py", "lets ranks agree on a pause"
    )


def test_stock_defaults_to_bf16_and_activation_checkpointing(tmp_path):
    defaults = SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert defaults.bf16 and getattr(defaults, CHECKPOINTING), gone("arguments.py", "has other defaults now")


def test_the_stock_loop_counts_skipped_steps_as_steps():
    source = inspect.getsource(Trainer)
    body = source[source.index("optimizer_step_was_skipped:") :][:900]
    lines = [line for line in body.splitlines() if "global_step += 1" in line or "lr_scheduler.step()" in line]
    indents = [len(line) - len(line.lstrip()) for line in lines[:2]]
    assert "lr_scheduler" in lines[0] and indents[1] < indents[0], gone(
        "trainer.py (CountingScaler)", "counts only steps taken now"
    )


def test_accelerate_makes_no_scaler_on_the_cpu():
    AcceleratorState._reset_state()
    PartialState._reset_state()
    try:
        accelerator = Accelerator(cpu=True, mixed_precision="fp16")
        assert accelerator.scaler is None, gone(
            "the CPU test of CountingScaler", "gets a scaler on the CPU from accelerate now"
        )
    finally:
        AcceleratorState._reset_state()
        PartialState._reset_state()
