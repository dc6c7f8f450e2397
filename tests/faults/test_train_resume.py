"""Killed at any moment and started again, training ends with the weights of a run never disturbed, bit for bit."""

import os
import re
import shutil
import signal
from functools import partial

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from nbutils.core.files import read_jsonl
from nbutils.core.run import pause
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef
from nbutils.train.dataset import TokenRows
from nbutils.train.evaluation import exact_loss
from tests.faults.bench import mounted
from tests.train.forked import forked
from tests.train.runs import flip_a_bit, history, logged, result, small_settings, torchrun, wait_for


def checkpoints(run):
    """Those that are whole, the newest first."""
    return Run(run).checkpoints()


def events(run):
    """What the worker told."""
    return read_jsonl(run / "train" / "progress.jsonl")


def paused_at(run):
    """The step at which training has paused, of which there is a whole checkpoint."""
    last, newest = events(run)[-1], checkpoints(run)[0]
    assert last["event"] == "paused" and newest.damage() is None and newest.manifest["step"] == last["step"]
    return newest.step


def train(run, **changes):
    """Trains to the end, or to a pause."""
    settings = small_settings(run, **changes)
    forked(settings, settings.processes)


def train_with(fault, run, leaves=0, **changes):
    """Trains until the planted fault, or beyond."""
    done = forked(small_settings(run, **changes), 2, FAULT=fault, LEAVES=str(leaves))
    assert (run / "fault").is_file(), f"{fault} did not happen: {done.stderr[-3000:]}"
    (run / "fault").unlink()
    return done


@pytest.fixture(scope="session")
def undisturbed(made_once):
    return made_once("undisturbed", train)


@pytest.fixture(scope="session")
def undisturbed_best(made_once):
    return made_once("undisturbed best", partial(train, **BEST))


@pytest.fixture
def run(undisturbed, tmp_path):
    """A fresh run folder with the data of the undisturbed run."""
    shutil.copytree(undisturbed / "data", tmp_path / "data")
    return tmp_path


def test_a_pause_request_is_one_decision_of_all_ranks_and_a_killed_rank_costs_nothing_but_time(run, undisturbed):
    done = train_with("asks_for_a_pause:3:1", run)
    assert done.returncode == 0 and paused_at(run) == 3, done.stderr[-3000:]
    pause.clear(run)
    assert train_with("mid_step:11:1", run).returncode
    assert checkpoints(run)[0].step == 8
    train(run)
    assert result(run) == result(undisturbed)


def test_the_best_model_is_kept_and_patience_ends_training_pause_or_not(run, undisturbed_best):
    train(run, **BEST, pause_after_steps=7)
    assert paused_at(run) == 7
    train(run, **BEST)
    assert result(run) == result(undisturbed_best)
    assert [row["session"] for row in logged(run, "session")] == [1, 2]
    losses = {row["step"]: row["eval_loss"] for row in logged(run, "eval")}
    assert list(losses) == [0, 2, 4, 6, 8, 10] and min(losses, key=losses.get) == 6
    assert logged(run, "train")[-1]["step"] == 10
    assert logged(run, "end") == [{"kind": "end", "chosen": 6, "step": 10, "steps": 12}]
    rows = TokenRows.load(run / "data" / "eval", "assistant")
    models = (ModelRef.parse(str(run / "train" / name)).load() for name in ("final", "last"))
    measured = [exact_loss(model, rows, 300).mean for model in models]
    assert measured == pytest.approx([losses[6], losses[10]], rel=1e-6)
    held_out = pq.read_table(Run(run).heldout)  # of the final model
    assert pc.sum(held_out["loss_sum"]).as_py() / pc.sum(held_out["tokens"]).as_py() == pytest.approx(losses[6])
    assert not (run / "train" / "checkpoints" / "best").exists()


def truncated(run):
    os.truncate(checkpoints(run)[0].path / "optimizer.pt", 1000)


def a_bit_flipped(run):
    flip_a_bit(checkpoints(run)[0].path / "optimizer.pt")


def half_a_line(run):
    """Cut within a character."""
    with (run / "train" / "metrics.jsonl").open("ab") as metrics:
        metrics.write('{"kind": "train", "words": "café'.encode()[:-1])


CHAINS = {
    "nothing saved": ["mid_step:3:all", "evaluation:2:all", "before_rename:1:0", "checkpoint_half_written:1:1"],
    "a step saved": [
        *("after_rename:1:0", "evaluation:1:1", "samples:1:0", "mid_step:2:0"),
        *("before_rename:1:0", "checkpoint_half_written:1:0", "after_rename:1:all"),
    ],
    "at its end": ["final:1:0", truncated, "evaluation:2:all", a_bit_flipped, "samples:2:0", half_a_line],
}
"""Faults of one session after another, and what happens to the files between two sessions."""


BEST = {
    "optimizer": "muon",
    "learning_rate": 0.02,
    "schedule": "constant",
    "warmup_fraction": 0.6,
    "eval_steps": 2,
    "patience": 2,
}
"""The evaluation of step 6 is the best, and that of step 10 the last."""
BEST_KILLED = [
    *("best:2:all", "link:1:0", "link:2:0", "before_rename:3:0", "best:3:0", "best_again:1:0", "model:1:0"),
    *("evaluation:2:1", "link:1:0", "final:1:0", "final:2:0", "after_models:1:0"),
]
"""Around each write and link of the best: at steps 4 and 6, in checkpoints, in a resume, and at the end."""


@pytest.mark.soak
@pytest.mark.parametrize("chain", CHAINS)
def test_sigkill_and_damage_cost_nothing_but_time(run, undisturbed, chain):
    for harm in CHAINS[chain]:
        if callable(harm):
            harm(run)
        else:
            assert train_with(harm, run).returncode, harm
    train(run)
    assert result(run) == result(undisturbed)


@pytest.mark.soak
def test_sigkill_around_the_best_model_changes_neither_it_nor_the_stop(run, undisturbed_best):
    for harm in BEST_KILLED:
        assert train_with(harm, run, **BEST).returncode, harm
    train(run, **BEST)
    assert result(run) == result(undisturbed_best)


@pytest.mark.soak
def test_what_follows_a_damaged_newest_checkpoint_is_kept(run, undisturbed):
    """With one checkpoint kept: the damaged one, of a later step, must not push out those that come after it."""
    train_with("final:1:0", run, checkpoints_kept=1)
    truncated(run)
    train_with("evaluation:3:all", run, checkpoints_kept=1)  # behind step 4
    assert [(kept.step, kept.damage()) for kept in checkpoints(run)] == [(4, None)]
    train(run)
    assert result(run) == result(undisturbed)


@pytest.mark.soak
def test_sigterm_and_a_spent_budget_pause_with_a_checkpoint(run, undisturbed):
    process = torchrun(small_settings(run), 2)
    wait_for(lambda: (run / "train" / "metrics.jsonl").is_file() and logged(run, "train")[1:])
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert 2 <= paused_at(run) < 12
    train(run, budget_minutes=0.01)
    assert paused_at(run) < 12 and not (run / "train" / "final").exists()
    train(run)
    assert result(run) == result(undisturbed)


@pytest.mark.soak
def test_a_loss_that_is_not_a_number_on_one_rank_is_told_by_all_with_its_rows(run):
    """Which rows, and before the update: see tests/train/test_trainer.py."""
    assert train_with("not_a_number:9:1", run).returncode
    (message,) = {event["message"] for event in events(run) if event["event"] == "error"}
    assert re.search(r"loss of step \d+ is not .* look at rows \d", message)


@pytest.mark.parametrize(
    "faults",
    [
        # The optimizer's file is cut off; what is half written makes way again, so that the rest of the run fits: two
        # models, the best and another while it is written.
        [("disk_fills_in_checkpoint:1:0", 3600)],
        pytest.param(
            [
                # The check before each checkpoint sees it, rows of metrics still fit, and the final model does not.
                ("disk_fills_before_step:3:0", 300),
                # Not even a row of metrics fits.
                ("disk_fills_before_step:6:0", 0),
                ("disk_fills_in_checkpoint:1:0", 0),
            ],
            marks=pytest.mark.soak,
        ),
    ],
)
def test_a_full_disk_costs_nothing_but_time(run, undisturbed, faults):
    """On a file system of its own, of 64 MiB."""
    with mounted(run / "train", "size=64m"):
        for fault, leaves in faults:
            full = train_with(fault, run, leaves)
            said = (run / "train" / "progress.jsonl").read_text() + full.stderr
            assert "No checkpoint at this step: " in said or not leaves
            assert not list((run / "train" / "checkpoints").glob("*.partial"))
            stops = "before_step" in fault
            assert bool(full.returncode) == stops == ("is full, so training stopped; free some and run again" in said)
            (run / "train" / "balloon").unlink()
        assert result(run) == result(undisturbed)


@pytest.mark.soak
def test_another_world_size_sees_each_remaining_row_once_and_says_so(run, undisturbed):
    train_with("evaluation:3:all", run)
    train(run, processes=1)
    assert any("not bit-identical" in event.get("message", "") for event in events(run))
    # the same rows in every step, so the same numbers but for rounding; of an evaluation only its step
    names = ("step", "total_tokens", "loss", "grad_norm")
    ours, theirs = ([[row.get(name, 0) for name in names] for row in history(each)] for each in (run, undisturbed))
    assert ours == [pytest.approx(row, rel=1e-4) for row in theirs]


@pytest.mark.soak
def test_two_agents_give_the_weights_of_the_two_process_run(run, undisturbed):
    rendezvous = ("--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:29533", "--rdzv-id=smallchat")
    agents = [torchrun(small_settings(run), 1, *rendezvous, "--local-addr=127.0.0.1") for _ in range(2)]
    assert [agent.wait(timeout=200) for agent in agents] == [0, 0]
    assert result(run) == result(undisturbed)
