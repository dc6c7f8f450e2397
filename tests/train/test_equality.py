"""The worker computes what the plain loop of notebook 02 computes, at any world size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nbutils.core.files import read_jsonl
from nbutils.core.notebooks import code_cells
from nbutils.core.run.models import ModelRef
from nbutils.train.batches import BatchPlan
from nbutils.train.dataset import TokenRows
from nbutils.train.evaluation import exact_loss
from tests.train.forked import forked
from tests.train.runs import small_settings

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


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("equality")


def plain_loop(run: Path, root: Path, settings, monkeypatch) -> tuple[dict, dict, list[float], list[float]]:
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
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
    return weights[0], weights[1], names["losses"], names["norms"]


@pytest.mark.parametrize("world", [1, 2, pytest.param(4, marks=pytest.mark.soak)])
def test_worker_equals_the_plain_loop(run, root, world, monkeypatch):
    settings = small_settings(run, **SGD)
    assert BatchPlan(TokenRows.load(run / "data" / "train", "all").lengths(), 300, 260, 1).steps_per_epoch == STEPS
    (run / "train").mkdir(exist_ok=True)
    for old in (run / "train").glob("checkpoints/*"):
        old.rename(run / f"old-{old.name}-{world}")
    done = forked(settings, world)
    assert done.returncode == 0, done.stderr[-3000:]
    one, last, losses, norms = plain_loop(run, root, settings, monkeypatch)
    base = load_file(run / "train" / "base" / "model.safetensors")
    first = load_file(run / "train" / "checkpoints" / "step-000001" / "model.safetensors")
    final = load_file(run / "train" / "final" / "model.safetensors")
    ours = torch.cat([(base[name] - first[name]).flatten() for name in first])
    expected = torch.cat([(base[name] - one[name]).flatten() for name in first])
    assert (ours - expected).norm() / expected.norm() < 1e-5
    for name, weight in final.items():
        assert torch.allclose(weight, last[name], atol=1e-5), name
    rows = [row for row in read_jsonl(run / "train" / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-5)
    assert [row["grad_norm"] for row in rows] == pytest.approx(norms, rel=1e-5)
    evaluations = [row for row in read_jsonl(run / "train" / "metrics.jsonl") if row["kind"] == "eval"]
    assert [row["step"] for row in evaluations] == [0, STEPS // 2, STEPS]
    evaluation_rows = TokenRows.load(run / "data" / "eval", "assistant")
    for budget in (512, 8192):
        alone = exact_loss(ModelRef.parse("final", run).load(), evaluation_rows, budget)
        assert evaluations[-1]["eval_loss"] == pytest.approx(alone["eval_loss"], abs=1e-6)
        assert evaluations[-1]["eval_token_accuracy"] == pytest.approx(alone["eval_token_accuracy"], abs=1e-6)
