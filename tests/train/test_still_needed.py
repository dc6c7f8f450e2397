"""Still needed? The parts of the stock trainer that ours replaces, seen doing what they are replaced for.

A failure here is good news: the installed trl or transformers no longer does it. The message names the module in
`nbutils/train/` that can then go, or has to change. Measured with trl 1.16 and transformers 5.23. That the stock loop
counts skipped fp16 steps, which `CountingScaler` tells, is seen in `test_trainer.py`.
"""

import inspect
import math

import numpy as np
import pytest
from datasets import load_from_disk
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from nbutils.core.run.models import tiny_model
from nbutils.train.arguments import CHECKPOINTING
from nbutils.train.batches import BatchPlan
from tests.builders import data_folder

QUIET = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "max_length": None,
    CHECKPOINTING: False,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_folder(tmp_path_factory.mktemp("stock"), train=48, evaluation=8, turns=20, max_length=2000)


@pytest.fixture
def stock(data, tmp_path):
    """Makes a stock SFTTrainer around `tiny`, with its own defaults besides the CPU and quiet."""

    def make(rows, **options):
        tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
        arguments = SFTConfig(str(tmp_path), **QUIET, **options)
        model = tiny_model(tokenizer, 2048, 0)
        return SFTTrainer(model, arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)

    return make


def labelled(folder):
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


def test_stock_accuracy_and_loss_depend_on_the_batch_size(data, stock):
    held_out = labelled(data / "eval")
    one, three = (stock(held_out, per_device_eval_batch_size=size).evaluate() for size in (1, 3))
    for name in ("eval_loss", "eval_mean_token_accuracy"):
        assert not math.isclose(one[name], three[name], abs_tol=1e-6), f"evaluation.py may go: {name} is exact now"
