"""Still needed? The parts of the stock trainer that ours replaces, seen doing what they are replaced for.

A failure here is good news: the installed trl or transformers no longer does it. The message names the module in
`nbutils/train/` that can then go, or has to change. Measured with trl 1.16 and transformers 5.23. That the stock loop
counts skipped fp16 steps, which `CountingScaler` tells, is seen in `test_trainer.py`.
"""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, load_from_disk
from transformers import AutoTokenizer
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
    "max_length": None,
    "learning_rate": 1e-4,
    CHECKPOINTING: False,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return data_folder(tmp_path_factory.mktemp("stock"), train=48, evaluation=8, turns=20, max_length=2000)


@pytest.fixture
def stock(data, tmp_path):
    """Makes a stock SFTTrainer around `tiny`, with its own defaults besides the CPU and quiet."""

    def make(rows: Dataset, **options: Any) -> SFTTrainer:
        tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
        arguments = SFTConfig(str(tmp_path), **(QUIET | options))
        model = tiny_model(tokenizer, 2048, 0)
        return SFTTrainer(model, arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)

    return make


def labelled(folder: Path) -> Dataset:
    """Tokenised rows as the stock trainer takes them, with labels on the assistant's tokens."""
    rows = load_from_disk(str(folder))
    labels = [np.where(row["supervised"], row["input_ids"], -100).tolist() for row in rows]
    return rows.select_columns("input_ids").add_column("labels", labels)


def test_stock_pads_batches_of_random_lengths_wants_a_mask_and_installs_its_fused_head(data, stock):
    train = labelled(data / "train")
    trainer = stock(train)
    batches = list(trainer.get_train_dataloader())
    useful = sum(int(b["attention_mask"].sum()) for b in batches) / sum(b["input_ids"].numel() for b in batches)
    ours = 1 - BatchPlan(np.array([len(ids) for ids in train["input_ids"]]), 4096, 2048, 0).padding()
    assert useful < 0.75 < ours, f"batches.py may go: {useful:.0%} of stock's tokens are useful, {ours:.0%} of ours"
    with pytest.raises(ValueError, match="attention_mask"):
        trainer.compute_loss(trainer.model, {name: batches[0][name] for name in ("input_ids", "labels")})
        pytest.fail("trainer.py (compute_loss) may go: stock takes right-padded rows without a mask now")
    forward = inspect.signature(trainer.model.forward, follow_wrapped=False)
    assert "fused_lm_head" in forward.parameters, "loss.py may change: stock installs no fused head any more"
    switches = [name for name in SFTConfig.__dataclass_fields__ if "fused" in name or "lm_head" in name]
    assert switches == [], "loss.py may change: stock has a switch for its fused head"


def test_stock_accuracy_and_loss_depend_on_the_batch_size(data, stock):
    held_out = labelled(data / "eval")
    one, three = (stock(held_out, per_device_eval_batch_size=size).evaluate() for size in (1, 3))
    for name in ("eval_loss", "eval_mean_token_accuracy"):
        assert not math.isclose(one[name], three[name], abs_tol=1e-6), f"evaluation.py may go: {name} is exact now"


def numbered(count: int) -> Dataset:
    """Rows of different lengths whose first token is their number."""
    return Dataset.from_list([{"input_ids": [i, *range(5, 7 + i % 7)]} for i in range(count)])


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_only_random_order_resumes_where_it_was(stock, tmp_path, strategy):
    """Two epochs of four steps; a checkpoint after step 6, from which the rows of the last two steps should follow."""

    def last_two_batches(**resumed: str) -> list[list[int]]:
        batches: list[list[int]] = []
        trainer = stock(numbered(16), train_sampling_strategy=strategy, per_device_train_batch_size=4,
                        num_train_epochs=2, save_strategy="steps", save_steps=6)  # fmt: skip
        own = trainer.data_collator

        def collate(rows: list[dict]) -> dict:
            batches.append([row["input_ids"][0] for row in rows])
            return own(rows)

        trainer.data_collator = collate
        trainer.train(**resumed)
        return batches[-2:]

    same = last_two_batches() == last_two_batches(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert same is (strategy == "random"), "batches.py (StepLoader) may go: stock resumes group_by_length exactly now"


def test_stock_checkpoints_are_written_in_place_and_taken_unchecked(stock, tmp_path, monkeypatch):
    trainer = stock(numbered(8), max_steps=2, save_strategy="steps", save_steps=1)

    def killed(*_: Any) -> None:
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt  # as if the process had ended here

    monkeypatch.setattr(trainer, "_save_scaler", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    half = tmp_path / "checkpoint-2"
    assert not (half / "trainer_state.json").exists()
    assert get_last_checkpoint(str(tmp_path)) == str(half), "checkpoints.py may go: stock passes over half ones"
