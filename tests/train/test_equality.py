"""The worker computes what the plain loop of notebook 02 computes, at any world size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nbutils.core.files import read_jsonl
from nbutils.core.notebooks import code_cells
from nbutils.core.run.models import ModelRef
from nbutils.train.batches import BatchPlan
from nbutils.train.dataset import TokenRows
from nbutils.train.evaluation import exact_loss
from tests.train.forked import forked
from tests.train.runs import flat, small_settings

STEPS = 22  # a whole epoch, so that its last step is among them
SGD = {
    "optimizer": "sgd",
    "learning_rate": 0.3,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_fraction": 0.0,
    "max_grad_norm": 0.0,
    "max_steps": STEPS,
    "tokens_per_step": 300,  # of one to three rows: with four processes some have none
    "tokens_per_microbatch": 260,
    "eval_steps": STEPS // 2,
    "checkpoint_steps": 1,
    "checkpoints_kept": 100,
    "sample_prompts": [],
}


def plain_loop(run: Path, root: Path, settings, monkeypatch) -> tuple[list[torch.Tensor], list[float], list[float]]:
    """Executes the notebook's own cells with SGD: weights after 1 and after all steps, losses and gradient norms."""
    cells = [c["source"] for c in code_cells(root / "notebooks" / "02_train_sft.ipynb")]
    prepare, loop = (source for source in cells if "cross_entropy" in source)
    assert len(loop.strip().splitlines()) == 15  # as its title says
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda parameters, lr, betas, weight_decay: torch.optim.SGD(parameters, lr)
    )
    weights = []
    for steps in (1, STEPS):
        rows = TokenRows.load(run / "data" / "train", "assistant")
        plan = BatchPlan.of(rows, settings)
        model = ModelRef.parse("base", run).load()
        names = {"model": model, "plan": plan, "rows": rows, "settings": settings, "plain_loop_steps": steps}
        exec(f"{prepare}\n{loop}", names)
        weights.append(flat(model))
    return weights, names["losses"], names["norms"]


@pytest.mark.parametrize("world", [1, 2, pytest.param(4, marks=pytest.mark.soak)])
def test_worker_equals_the_plain_loop(tmp_path, root, world, monkeypatch):
    settings = small_settings(tmp_path, **SGD)
    done = forked(settings, world)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, losses, norms = plain_loop(tmp_path, root, settings, monkeypatch)
    base, first, final = (flat(ModelRef.parse(name, tmp_path).load()) for name in ("base", "step-000001", "final"))
    ours, theirs = base - first, base - expected[0]
    assert (ours - theirs).norm() / theirs.norm() < 1e-5
    assert torch.allclose(final, expected[1], atol=1e-5)
    rows = read_jsonl(tmp_path / "train" / "metrics.jsonl")
    steps = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1)) and steps[-1]["epoch"] == 1.0
    assert [row["loss"] for row in steps] == pytest.approx(losses, rel=1e-5)
    assert [row["grad_norm"] for row in steps] == pytest.approx(norms, rel=1e-5)
    evaluations = [row for row in rows if row["kind"] == "eval"]
    assert [row["step"] for row in evaluations] == [0, STEPS // 2, STEPS]
    held_out = TokenRows.load(tmp_path / "data" / "eval", "assistant")
    for budget in (512, 8192):
        alone = exact_loss(ModelRef.parse("final", tmp_path).load(), held_out, budget)
        for name in ("eval_loss", "eval_token_accuracy"):
            assert evaluations[-1][name] == pytest.approx(alone[name], abs=1e-6)
