"""Muon: torch's own updates in equal precision, AdamW's for the rest, and the state that it is said to keep."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from nbutils.train import optimizer
from nbutils.train.optimizer import Muon, hidden_matrices, numbers_kept
from nbutils.train.settings import OPTIMIZERS
from tests.core.test_chatml import llama
from tests.train.forked import forked
from tests.train.runs import logged, small_settings

RATE, DECAY = {"lr": 0.01}, 0.1


def gpt2():
    """Its matrices stand the other way round, and it has biases."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4))


@pytest.mark.parametrize("base,chosen", [("tiny", "muon"), ("some/base", "adamw_torch")])
def test_auto_is_muon_where_a_model_begins_from_nothing(tmp_path, base, chosen):
    assert small_settings(tmp_path, base_model=base, optimizer="auto").optimizer == chosen


@pytest.mark.parametrize(
    "make,matrices",
    [
        (lambda: llama(100, hidden_size=32, intermediate_size=48, num_hidden_layers=2), 14),
        (lambda: llama(100, tie_word_embeddings=True, num_hidden_layers=1), 7),
        (gpt2, 8),
    ],
)
@pytest.mark.parametrize("at_once", [1, 2**24])
def test_matrices_move_as_by_torchs_muon_and_all_else_as_by_adamw(make, matrices, at_once, monkeypatch):
    monkeypatch.setattr(optimizer, "AT_ONCE", at_once)
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # torch's Muon in float32
    ours, theirs = make(), make()
    theirs.load_state_dict(ours.state_dict())
    hidden = hidden_matrices(theirs)
    others = [p for p in theirs.parameters() if p not in hidden]
    muon = Muon([{"params": [*ours.parameters()], "weight_decay": DECAY}], hidden_matrices(ours), **RATE)
    stock = [
        torch.optim.Muon(hidden, **RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, **RATE, weight_decay=DECAY),
    ]
    assert len(hidden) == matrices
    for _ in range(3):
        for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = their.grad = torch.randn_like(mine)
        for each in (muon, *stock):
            each.step()
    for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-5 if their in hidden else 0)
    states = muon.state_dict()["state"].values()
    kept = sum(value.numel() for state in states for name, value in state.items() if name != "step")
    assert kept == numbers_kept("muon", ours) < OPTIMIZERS["adamw_torch"] * ours.num_parameters()


@pytest.mark.soak
def test_ranks_that_share_the_work_take_the_steps_of_one(tmp_path):
    """Three for matrices of which there are eight or four, so that their shares are unequal."""
    changes = {"optimizer": "muon", "max_steps": 6, "eval_steps": 0, "checkpoint_steps": 0, "sample_prompts": []}
    for world in (1, 3):
        forked(small_settings(tmp_path / str(world), **changes), world)
    one, three = (logged(tmp_path / world, "train") for world in ("1", "3"))
    assert [row["loss"] for row in three] == pytest.approx([row["loss"] for row in one], rel=1e-4)
