"""Dataset, checkpoints, options, records, counters, budget: each part of the trainer on its own."""

import signal
import time
from functools import partial

import numpy as np
import pytest
import torch

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.core.run import checkpoints
from nbutils.core.run.checkpoints import Checkpoint
from nbutils.train import control
from nbutils.train.batches import BatchPlan, StepBatch, StepLoader
from nbutils.train.control import Budget, Counters, flops_of, pause_requests
from nbutils.train.dataset import TokenRows
from nbutils.train.loss import causal_lm_loss
from tests.core.test_chatml import llama
from tests.train.runs import checkpoint, flip_a_bit, small_settings

END = 510
"""The id of <|im_end|> in the data's tokenizer."""


@pytest.mark.parametrize("supervise", ["assistant", "all"])
@pytest.mark.parametrize("unsupervised_end", [None, END])
def test_counts_agree_with_tensors_and_padding_carries_no_label(tmp_path, supervise, unsupervised_end):
    small_settings(tmp_path)
    rows = TokenRows.load(tmp_path / "data" / "train", supervise, unsupervised_end)
    ids, positions, targets = rows.tensors(np.arange(len(rows)))
    row, before = positions // ids.shape[1], positions % ids.shape[1]
    assert row.bincount(minlength=len(rows)).tolist() == rows.supervised_counts().tolist()
    assert targets.tolist() == ids[row, before + 1].tolist()
    assert (targets == END).any() == (unsupervised_end is None)
    padding = torch.arange(ids.shape[1]) >= torch.tensor(rows.lengths())[:, None]
    assert padding.any() and not padding[row, before + 1].any() and (ids[padding] == 0).all()


def test_a_gpus_tensors_have_few_widths_little_more_to_compute_and_the_same_loss(tmp_path):
    small_settings(tmp_path)
    rows = TokenRows.load(tmp_path / "data" / "train", "all")
    plan, wide, model = BatchPlan(rows.lengths(), 600, 300, 1), rows.on(torch.device("cuda")), llama(600)
    step = StepLoader(wide, plan).step_batch(plan.steps(0)[0])
    assert step.padded_tokens == sum(batch.input_ids.numel() for batch in step.microbatches)
    for numbers, batch in zip(step.rows, step.microbatches, strict=True):
        loss, expected = (causal_lm_loss(model, *each)[0].item() for each in (batch, rows.tensors(numbers)))
        assert loss == pytest.approx(expected, rel=1e-5)
    lengths = np.arange(1, wide.longest + 1)
    widths = np.array([wide.width(length) for length in lengths.tolist()])
    assert (lengths <= widths).all() and (widths <= 1.125 * lengths).all() and len({*widths}) < 50


def test_the_newest_valid_checkpoint_wins_and_damage_is_passed_over(tmp_path):
    first, second, third, fourth = (checkpoint(tmp_path, step) for step in (5, 10, 15, 20))
    (second.path / "weights").write_bytes(b"short")
    flip_a_bit(third.path / "weights")
    (fourth.path / "manifest.json").write_text("{half")
    half = Checkpoint.at(tmp_path, 25).partial
    half.mkdir()
    found, passed_over = checkpoints.newest_whole(tmp_path)
    assert found == first and passed_over == {
        fourth: "has a manifest that cannot be read",
        third: "has a changed weights (100 of 100 bytes)",
        second: "has a changed weights (5 of 100 bytes)",
    }
    assert checkpoints.half_written(tmp_path) == [half]


def test_a_checkpoint_of_other_settings_or_of_a_newer_version_is_refused_by_name(tmp_path):
    made = checkpoint(tmp_path, 5, {"parameters": {"seed": 1, "learning_rate": 0.1}, "data": "abc"})
    with pytest.raises(UserError, match=r"data \('abc' → 'x'\).*learning_rate \(0\.1 → 0\.2\)"):
        checkpoints.check_identity(made, {"parameters": {"seed": 1, "learning_rate": 0.2}, "data": "x"})
    write_json(made.path / "manifest.json", read_json(made.path / "manifest.json") | {"schema": 99})
    with pytest.raises(UserError, match="newer smallchat"):
        checkpoints.newest_whole(tmp_path)


@pytest.mark.parametrize(
    "words,given",
    {
        "'trainer_options' .*'logging_dir' cannot .* adam_beta1, adam": {"trainer_options": {"logging_dir": "x"}},
        r"adam_beta2' is 1: .*ddp_timeout' is 0: ": {"trainer_options": {"adam_beta2": 1, "ddp_timeout": 0}},
        "'patience' .*eval_steps is 0": {"patience": 2, "eval_steps": 0},
        "'finish_in_minutes' .*max_steps is 5": {"finish_in_minutes": 2, "max_steps": 5},
    }.items(),
)
def test_what_does_not_go_together_or_cannot_be_set_is_named(tmp_path, words, given):
    with pytest.raises(UserError, match=words):
        small_settings(tmp_path, **given)


def test_a_row_that_two_sessions_share_has_the_time_of_both(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(control.time, "perf_counter", lambda: now)

    def step(counters, seconds, working):
        nonlocal now
        counters.start_clock()
        now += seconds
        batch = StepBatch([], [], supervised_tokens=10, tokens=60, padded_tokens=80, attended=0)
        counters.count_step(batch, 1.0, 1.0, 500.0)
        counters.add("forward_backward", working)
        assert counters.end_step() == seconds

    first, second = Counters(), Counters()
    step(first, 3.0, 2.5)
    now += 50.0  # the checkpoint being written is no part of it
    first.save(tmp_path, slowest={"step": 3.0})
    assert second.load(tmp_path)["slowest"] == {"step": 3.0}
    now += 20.0  # start-up
    step(second, 1.0, 0.5)
    second.peak = 1000.0
    row = second.row()
    assert row["tokens_per_second"] == pytest.approx(120 / 4.0) and row["elapsed"] == 4.0
    assert row["mfu"] == 2 * 500 / 4.0 / 1000
    assert row["seconds"]["forward_backward"] == 3.0 and row["seconds"]["optimizer"] == 1.0


def test_every_rank_counts_the_operations_of_all(tmp_path):
    small_settings(tmp_path)
    rows = TokenRows.load(tmp_path / "data" / "train", "all")
    plan = BatchPlan(rows.lengths(), 600, 150, 1)
    model = llama(100, num_hidden_layers=2)
    step = plan.steps(0)[0]
    ranks = [flops_of(model, StepLoader(rows, plan, rank, 2).step_batch(step)) for rank in (0, 1)]
    attention = 6 * 2 * 16 * (plan.lengths[step].astype(int) ** 2).sum()
    tokens, supervised = plan.lengths[step].sum(), rows.supervised_counts()[step].sum()
    body = model.num_parameters() - 2 * 1600
    assert ranks == [6 * (body * tokens + 1600 * supervised) + attention] * 2


def test_the_budget_keeps_a_margin_for_the_slowest_pause(monkeypatch):
    monkeypatch.setenv("NBUTILS_STARTED", str(time.time() - 60))
    budget = Budget(lambda: False, minutes=2.0)
    assert not budget.is_spent()
    budget.note("pause", 25.0)
    assert budget.is_spent()


@pytest.mark.parametrize("handler,asks", [(signal.SIG_IGN, False), (signal.SIG_DFL, True)])
def test_a_signal_asks_for_a_pause_and_nohup_is_respected(tmp_path, request, handler, asks):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        request.addfinalizer(partial(signal.signal, number, signal.getsignal(number)))
    signal.signal(signal.SIGHUP, handler)
    requests = pause_requests(tmp_path)
    signal.raise_signal(signal.SIGHUP)
    assert requests() is asks
