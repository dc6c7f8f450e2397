"""The worker computes what the plain loop of notebook 02 computes, at any world size."""

from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_from_disk

from nbutils.core.notebooks import code_cells
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef
from nbutils.train.base import ensure_base
from nbutils.train.batches import BatchPlan
from nbutils.train.dataset import TokenRows
from nbutils.train.evaluation import exact_loss
from tests.train.forked import forked
from tests.train.runs import flat, logged, small_settings

STEPS = 22  # a whole epoch, so that its last step is among them
SGD = {
    "optimizer": "sgd",
    "learning_rate": 0.3,
    "weight_decay": 0.0,
    "max_steps": STEPS,
    "tokens_per_step": 300,  # of one to three rows: with four processes some have none
    "tokens_per_microbatch": 260,
    "eval_steps": STEPS // 2,
    "checkpoint_steps": 0,
    "sample_prompts": [],
    "plain_loop_steps": STEPS,
}


@pytest.fixture(scope="module")
def plain(root, tmp_path_factory):
    """The names of the notebook's own cells, executed with SGD, and the weights before them."""
    cells = code_cells(root / "notebooks" / "02_train_sft.ipynb")
    prepare, loop = (cell["source"] for cell in cells if "cross_entropy" in cell["source"])
    assert len(loop.strip().splitlines()) == 15  # as its title says
    run = tmp_path_factory.mktemp("plain")
    settings = small_settings(run, **SGD)
    model = ModelRef.parse(str(ensure_base(settings, run / "train" / "base", run / "data"))).load()
    rows = TokenRows.load(run / "data" / "train", "assistant")
    names = {"model": model, "rows": rows, "plan": BatchPlan.of(rows, settings), "settings": settings,
             "base": flat(model)}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", lambda parameters, lr, **_: torch.optim.SGD(parameters, lr))
        exec(f"{prepare}\n{loop}", names)
    return SimpleNamespace(**names)


@pytest.mark.parametrize("world", [1, 2, pytest.param(4, marks=pytest.mark.soak)])
def test_worker_equals_the_plain_loop(tmp_path, plain, world):
    forked(small_settings(tmp_path, **SGD), world)
    final = ModelRef.parse("final", tmp_path).load()
    ours, theirs = flat(final) - plain.base, flat(plain.model) - plain.base
    assert (ours - theirs).norm() / theirs.norm() < 1e-5
    steps = logged(tmp_path, "train")
    assert [row["loss"] for row in steps] == pytest.approx(plain.losses, rel=1e-5)
    assert [row["grad_norm"] for row in steps] == pytest.approx(plain.norms, rel=1e-5)
    assert steps[0]["seconds"]["evaluation"] == 0.0  # of the one before the first step
    assert all(row["mfu"] > 0 for row in steps)
    last = logged(tmp_path, "eval")[-1]
    held_out = TokenRows.load(tmp_path / "data" / "eval", "assistant")
    table = pq.read_table(Run(tmp_path).heldout)
    sums, tokens = table["loss_sum"].to_numpy(), table["tokens"].to_numpy()
    assert last["eval_loss"] == sums.sum() / tokens.sum()
    assert table["index"].to_pylist() == list(load_from_disk(str(tmp_path / "data" / "eval"))["index"])
    for budget in (512, 8192):
        alone = exact_loss(final, held_out, budget)
        assert {name: last[name] for name in alone.facts()} == pytest.approx(alone.facts(), abs=1e-6)
        assert sums == pytest.approx(alone.sums, abs=1e-4) and tokens.tolist() == held_out.supervised_counts().tolist()
