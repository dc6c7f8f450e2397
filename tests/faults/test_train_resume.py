"""Killed at any moment and started again, training ends with the weights of a run never disturbed, bit for bit."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbutils.core.files import read_json, read_jsonl, sha256_of_file
from nbutils.core.run import pause
from nbutils.core.run.checkpoints import Checkpoint
from nbutils.train.batches import BatchPlan
from nbutils.train.dataset import TokenRows
from tests.train.forked import forked
from tests.train.runs import small_settings, torchrun, wait_for

FAULTY = "tests.faults.worker_with_faults"
MACHINE_PARTS = ("tokens_per_second", "flops_per_second", "peak_memory_gib", "seconds", "elapsed", "session", "time")


def weights(run: Path) -> str:
    return sha256_of_file(run / "train" / "final" / "model.safetensors")


def history(run: Path) -> list[dict]:
    """The rows of metrics without what depends on the machine's speed."""
    rows = read_jsonl(run / "train" / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in MACHINE_PARTS} for row in rows if row["kind"] != "session"]


@pytest.fixture(scope="session")
def undisturbed(made_once) -> Path:
    def make(run: Path) -> None:
        done = forked(small_settings(run), 2)
        assert done.returncode == 0, done.stderr[-3000:]

    return made_once("undisturbed", make)


@pytest.fixture
def run(undisturbed, tmp_path) -> Path:
    """A fresh run folder with the data of the undisturbed run."""
    shutil.copytree(undisturbed / "data", tmp_path / "data")
    return tmp_path


def finish(run: Path, undisturbed: Path, sessions: int = 2) -> None:
    """Starts the run again without a fault and compares its end with the undisturbed run's."""
    done = forked(small_settings(run), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights(run) == weights(undisturbed)
    assert history(run) == history(undisturbed)
    samples = [(run / "train" / "samples.jsonl").read_text(), (undisturbed / "train" / "samples.jsonl").read_text()]
    assert samples[0] == samples[1]
    found = [row["session"] for row in read_jsonl(run / "train" / "metrics.jsonl") if row["kind"] == "session"]
    assert max(found) <= sessions


FAST = [("mid_step:17", "1")]
SLOW = [
    ("mid_step:3", "all"),
    ("mid_step:12", "0"),
    ("evaluation:2", "all"),
    ("evaluation:3", "1"),
    ("samples:2", "0"),
    ("samples:3", "0"),
    ("before_rename:1", "0"),
    ("before_rename:2", "0"),
    ("after_rename:1", "0"),
    ("after_rename:2", "all"),
    ("checkpoint_half_written:2", "0"),
    ("checkpoint_half_written:1", "1"),
    ("final:1", "0"),
]


@pytest.mark.parametrize("point,rank", FAST + [pytest.param(*case, marks=pytest.mark.soak) for case in SLOW])
def test_sigkill(run, undisturbed, point, rank):
    killed = forked(small_settings(run), 2, module=FAULTY, environment={"FAULT": f"{point}:{rank}"})
    assert killed.returncode != 0 and list(run.glob("fault-*")), "the planted fault did not happen"
    finish(run, undisturbed)


def wait_for_step(run: Path, step: int) -> None:
    path = run / "train" / "metrics.jsonl"
    wait_for(lambda: path.is_file() and any(row["step"] >= step for row in read_jsonl(path)))


def last_event(run: Path) -> dict:
    return json.loads((run / "train" / "progress.jsonl").read_text().strip().split("\n")[-1])


@pytest.mark.soak
def test_sigterm_pauses_with_a_checkpoint(run, undisturbed):
    process = torchrun(small_settings(run), 2)
    wait_for_step(run, 2)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert last_event(run)["event"] == "paused" and last_event(run)["step"] < 12
    assert not (run / "train" / "final").exists()
    finish(run, undisturbed)


def test_a_pause_request_is_one_decision_of_all_ranks(run, undisturbed):
    done = forked(small_settings(run), 2, module=FAULTY, environment={"FAULT": "asks_for_a_pause:3:1"})
    step = last_event(run)["step"]
    assert done.returncode == 0 and last_event(run)["event"] == "paused", done.stderr[-3000:]
    assert read_json(run / "train" / "checkpoints" / f"step-{step:06d}" / "manifest.json")["step"] == step == 3
    pause.clear(run)
    finish(run, undisturbed)


@pytest.mark.soak
def test_budget_pauses_and_the_next_sessions_finish(run, undisturbed):
    done = forked(small_settings(run, budget_minutes=0.01), 2)
    assert done.returncode == 0 and last_event(run)["event"] == "paused", done.stderr[-3000:]
    finish(run, undisturbed)


@pytest.mark.soak
def test_what_follows_a_damaged_newest_checkpoint_is_kept(run, undisturbed):
    """With one checkpoint kept: the damaged one, of a later step, must not push out those that come after it."""
    settings = small_settings(run, checkpoints_kept=1)
    forked(settings, 2, module=FAULTY, environment={"FAULT": "evaluation:4:all"})  # the last one, behind step 8
    checkpoints = run / "train" / "checkpoints"
    with (checkpoints / "step-000008" / "optimizer.pt").open("r+b") as file:
        file.truncate(1000)
    process = torchrun(settings, 2)
    wait_for(lambda: list(checkpoints.glob("damaged-*")))  # before that the rows are those of the first session
    wait_for_step(run, 5)
    for member in [*process.children(recursive=True), process]:
        member.kill()
    process.wait()
    (kept,) = (path for path in checkpoints.iterdir() if path.suffix != ".partial")
    assert Checkpoint(kept).damage() is None
    finish(run, undisturbed, sessions=3)


@pytest.mark.soak
@pytest.mark.parametrize("harm", ["truncated", "bit_flipped", "half_a_line"])
def test_damage_costs_only_time(run, undisturbed, harm):
    forked(small_settings(run), 2, module=FAULTY, environment={"FAULT": "evaluation:3:all"})
    checkpoint = sorted((run / "train" / "checkpoints").glob("step-*"))[-1]
    file = checkpoint / "optimizer.pt"
    content = bytearray(file.read_bytes())
    if harm == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif harm == "bit_flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        with (run / "train" / "metrics.jsonl").open("a") as metrics:
            metrics.write('{"kind": "train", "step": 1')
    finish(run, undisturbed, sessions=3)


@pytest.mark.soak
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_loss_that_is_not_a_number_on_one_rank_is_told_by_all_with_its_rows(run, undisturbed, rank):
    """Before the update: see tests/train/test_trainer.py, where the weights can be looked at."""
    settings = small_settings(run)
    done = forked(settings, 2, module=FAULTY, environment={"FAULT": f"not_a_number:9:{rank}"})
    errors = [event for event in read_jsonl(run / "train" / "progress.jsonl") if event["event"] == "error"]
    assert done.returncode != 0 and len({error["message"] for error in errors}) == 1
    step, named = re.search(
        r"loss of step (\d+) is not .* look at rows (.+) of data/train", errors[-1]["message"]
    ).groups()
    lengths = TokenRows.load(run / "data" / "train", "all").lengths()
    plan = BatchPlan(lengths, settings.tokens_per_step, settings.tokens_per_microbatch, settings.seed)
    batches = plan.deal(plan.steps(0)[int(step) - 1], 2)[int(rank)]
    assert named in [", ".join(map(str, sorted(batch))) for batch in batches]
    finish(run, undisturbed)


@pytest.fixture
def small_disk(undisturbed, tmp_path) -> Iterator[Path]:
    """A run folder on a file system of its own, of 64 MiB: a real full disk needs one."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mount)], capture_output=True)
    if made.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        run = mount / "run"
        shutil.copytree(undisturbed / "data", run / "data")
        yield run
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


FULL = [
    # The optimizer's file is cut off; what is half written makes way again, so that the rest of the run fits.
    ("disk_fills_in_checkpoint:1", 40, "finishes"),
    ("disk_fills_in_checkpoint:2", 0, "finishes"),
    # The check before each checkpoint sees it, rows of metrics still fit, and the final model does not.
    ("disk_fills_before_step:3", 300, "stops"),
    # Not even a row of metrics fits.
    ("disk_fills_before_step:6", 0, "stops"),
]


@pytest.mark.parametrize("point,leaves,then", [FULL[0], *(pytest.param(*c, marks=pytest.mark.soak) for c in FULL[1:])])
def test_a_full_disk_costs_nothing_but_time(small_disk, undisturbed, point, leaves, then):
    fault = {"FAULT": f"{point}:0", "BALLOON_LEAVES": str(leaves)}
    full = forked(small_settings(small_disk), 2, module=FAULTY, environment=fault)
    assert (small_disk / "balloon").exists(), "the planted fault did not happen"
    said = (small_disk / "train" / "progress.jsonl").read_text() + full.stderr
    assert "No checkpoint at this step: " in said or not leaves
    assert not list((small_disk / "train" / "checkpoints").glob("*.partial"))
    if then == "finishes":
        assert full.returncode == 0 and weights(small_disk) == weights(undisturbed)
    else:
        assert full.returncode != 0 and "is full, so training stopped; free some and run again" in said
    (small_disk / "balloon").unlink()
    finish(small_disk, undisturbed)


@pytest.mark.soak
def test_another_world_size_sees_each_remaining_row_once_and_says_so(run, undisturbed):
    forked(small_settings(run), 2, module=FAULTY, environment={"FAULT": "evaluation:3:all"})
    done = forked(small_settings(run, processes=1), 1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "not bit-identical" in (run / "train" / "progress.jsonl").read_text()
    ours, theirs = history(run), history(undisturbed)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    totals = [row["total_tokens"] for row in ours if row["kind"] == "train"]
    assert totals == [row["total_tokens"] for row in theirs if row["kind"] == "train"]
    for column in ("loss", "grad_norm"):  # the same rows in every step, so the same numbers but for rounding
        numbers = [row[column] for row in ours if row["kind"] == "train"]
        assert numbers == pytest.approx([row[column] for row in theirs if row["kind"] == "train"], rel=1e-4), column


@pytest.mark.soak
def test_two_agents_give_the_weights_of_the_two_process_run(run, undisturbed):
    rendezvous = ("--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:29533", "--rdzv-id=smallchat")
    agents = [torchrun(small_settings(run), 1, *rendezvous, "--local-addr=127.0.0.1") for _ in range(2)]
    assert [agent.wait(timeout=200) for agent in agents] == [0, 0]
    assert weights(run) == weights(undisturbed)
