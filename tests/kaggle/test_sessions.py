"""Bundled training on a simulated Kaggle: sessions that pause, are killed, fail, and go on to the same bits."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nbutils.core.files import read_jsonl, sha256_of_file
from nbutils.core.run.layout import Run
from tests.kaggle.simulated import DATA, NESTED, SMALL, Outcome, bundles, done, kill_session, kill_worker, wait_for

pytestmark = pytest.mark.soak

TRAIN = "someone/smallchat-small-02-train-sft"


def run_of(outcome: Outcome) -> Run:
    return Run(outcome.working / "runs" / "small")


def record(outcome: Outcome) -> dict:
    found = run_of(outcome).record("train")
    assert found is not None
    return found


def newest(run: Run) -> int:
    """The step of its newest checkpoint."""
    return run.checkpoints()[0].step


def weights(outcome: Outcome) -> str:
    assert record(outcome)["status"] == "done", outcome.text[-3000:]
    return sha256_of_file(run_of(outcome).final / "model.safetensors")


def test_sessions_that_pause_are_killed_and_fail_end_as_one(account, unhurried, data, undisturbed, tmp_path):
    """Each is fed what the one before left, the last a damaged checkpoint and the outputs of two versions at once."""
    assert "starts at step 0" in undisturbed.text and "its work is lost" in undisturbed.text
    # A budget that is used up before the first step: a session takes one.
    hurried = bundles(SMALL, tmp_path / "hurried", "-p", "budget_minutes=0.001")
    paused = done(account.run(hurried["02-train-sft"], {DATA: data}))
    assert record(paused)["facts"]["step"] == 1
    assert "Save Version" in paused.text and "paused at 12 % (step 1)" in paused.text
    bundle = unhurried["02-train-sft"]

    def after(step: int, working: Path, process: subprocess.Popen[str]) -> None:
        wait_for(working, f"runs/small/train/checkpoints/step-{step:06d}/manifest.json", process)

    def kill(process: subprocess.Popen[str], working: Path) -> None:
        after(2, working, process)
        kill_session(process, working)

    killed = account.run(bundle, {DATA: data, TRAIN: paused.working}, during=kill)
    assert killed.status != 0 and record(killed)["status"] == "running"
    reached = newest(run_of(killed))

    def fail(process: subprocess.Popen[str], working: Path) -> None:
        after(reached + 1, working, process)
        kill_worker(process)

    account.layout = NESTED
    failed = done(account.run(bundle, {DATA: data, TRAIN: killed.working}, during=fail))
    assert "Continues the session of" in failed.text and f"at step {reached}" in failed.text
    assert record(failed)["status"] == "failed" and "\033[1;31mUserError: Training ended" in failed.text

    output = shutil.copytree(failed.working, tmp_path / "output")
    damaged = newest(Run(output / "runs" / "small"))
    file = output / "runs" / "small" / "train" / "checkpoints" / f"step-{damaged:06d}" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    inputs = {DATA: data, "other/first-version": paused.working, TRAIN: output}
    last = done(account.run(bundle, inputs))
    assert re.search(rf"step-{damaged:06d} has a changed model.safetensors .*is passed over", last.text)
    assert f"at step {damaged - 1}" in last.text and weights(last) == weights(undisturbed)
    rows = read_jsonl(run_of(last).path / "kaggle.jsonl")
    assert [row["step"] for row in rows if row["stage"] == "train"] == [0, 1, reached, damaged - 1]

    again = done(account.run(bundle, {DATA: data, TRAIN: last.working}))
    assert "finished already" in again.text and "Training starts" not in again.text
    assert weights(again) == weights(undisturbed)
    assert (run_of(again).path / "run.json").is_file()
