"""Bundled training on a simulated Kaggle: sessions that pause, are killed, fail, and go on to the same bits."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from nbutils.core.files import read_json, read_jsonl, sha256_of_file
from tests.kaggle.simulated import DATA, SMALL, Outcome, bundles, done, is_worker, kill_session, wait_for

pytestmark = pytest.mark.soak

TRAIN = "someone/smallchat-small-02-train-sft"
PAUSES = "budget_minutes=0.001"
"""Used up before the first step, so that each session takes one."""


@pytest.fixture(scope="module")
def hurried(tmp_path_factory) -> dict[str, Path]:
    """Bundles whose training pauses after one optimizer step of three."""
    return bundles(SMALL, tmp_path_factory.mktemp("hurried"), "-p", PAUSES)


@pytest.fixture(scope="module")
def paused(account, hurried, data) -> list[Outcome]:
    """Two sessions that were paused by their budget, the second fed the output of the first."""
    account.layout = "flat"
    first = done(account.run(hurried["02-train-sft"], {DATA: data}))
    return [first, done(account.run(hurried["02-train-sft"], {DATA: data, TRAIN: first.working}))]


def record(outcome: Outcome) -> dict:
    return read_json(outcome.working / "runs" / "small" / "train" / "stage.json")


def weights(outcome: Outcome) -> str:
    assert record(outcome)["status"] == "done", outcome.text[-3000:]
    return sha256_of_file(outcome.working / "runs" / "small" / "train" / "final" / "model.safetensors")


def test_a_session_without_an_earlier_one_says_so(undisturbed):
    assert "starts at step 0" in undisturbed.text and "its work is lost" in undisturbed.text


def test_three_sessions_end_as_one_and_a_fourth_passes_through(account, hurried, data, undisturbed, paused):
    first, second = paused
    assert [record(outcome)["facts"]["step"] for outcome in paused] == [1, 2]
    assert "Save Version" in first.text and "paused at step 1 of 3" in first.text
    assert "Continues the session of" in second.text and "at step 1" in second.text

    account.layout = "nested"  # and the outputs of two versions attached at once
    inputs = {DATA: data, "other/first-version": first.working, TRAIN: second.working}
    third = done(account.run(hurried["02-train-sft"], inputs))
    assert "Continues the session of" in third.text and "at step 2" in third.text
    assert weights(third) == weights(undisturbed)
    rows = read_jsonl(third.working / "runs" / "small" / "kaggle.jsonl")
    assert [row["step"] for row in rows if row["stage"] == "train"] == [0, 1, 2]

    fourth = done(account.run(hurried["02-train-sft"], {DATA: data, TRAIN: third.working}))
    assert "finished already" in fourth.text and "Training starts" not in fourth.text
    assert weights(fourth) == weights(undisturbed)
    assert (fourth.working / "runs" / "small" / "run.json").is_file()


def test_a_damaged_newest_checkpoint_is_passed_over(account, unhurried, data, undisturbed, paused, tmp_path):
    account.layout = "nested"
    output = tmp_path / "output"
    shutil.copytree(paused[1].working, output)
    weights_file = output / "runs" / "small" / "train" / "checkpoints" / "step-000002" / "model.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[-1] ^= 1
    weights_file.write_bytes(content)
    outcome = done(account.run(unhurried["02-train-sft"], {DATA: data, TRAIN: output}))
    assert re.search(r"step-000002 has a changed model.safetensors .*is passed over", outcome.text)
    assert "at step 1" in outcome.text and weights(outcome) == weights(undisturbed)


def test_a_killed_session_whose_output_was_kept_goes_on(account, unhurried, data, undisturbed):
    account.layout = "flat"

    def kill(process: subprocess.Popen[str], working: Path) -> None:
        wait_for(working, "runs/small/train/checkpoints/step-*/manifest.json", process)
        kill_session(process, working)

    killed = account.run(unhurried["02-train-sft"], {DATA: data}, during=kill)
    assert killed.status != 0 and record(killed)["status"] == "running"
    outcome = done(account.run(unhurried["02-train-sft"], {DATA: data, TRAIN: killed.working}))
    assert "Continues the session of" in outcome.text and weights(outcome) == weights(undisturbed)

    again = done(account.run(unhurried["02-train-sft"], {DATA: data}))  # Kaggle has published nothing of it
    assert "starts at step 0" in again.text and "its work is lost" in again.text
    assert weights(again) == weights(undisturbed)


def test_other_settings_stop_before_anything_is_run(account, data, paused, tmp_path):
    account.layout = "flat"
    other = bundles(SMALL, tmp_path, "-p", PAUSES, "-p", "learning_rate=0.001")
    outcome = account.run(other["02-train-sft"], {DATA: data, TRAIN: paused[0].working})
    assert outcome.status != 0 and "Training starts" not in outcome.text and "Continues" not in outcome.text
    assert re.search(r"step 1\).*learning_rate \(0.003 → 0.001\).*--force", outcome.text), outcome.text[-3000:]


def test_a_failure_after_the_first_checkpoint_keeps_the_output(account, unhurried, data, undisturbed):
    account.layout = "nested"

    def fail(process: subprocess.Popen[str], working: Path) -> None:
        wait_for(working, "runs/small/train/checkpoints/step-*/manifest.json", process)
        workers = [p for p in psutil.Process(process.pid).children(recursive=True) if is_worker(p)]
        os.kill(workers[0].pid, signal.SIGKILL)

    failed = done(account.run(unhurried["02-train-sft"], {DATA: data}, during=fail))
    assert record(failed)["status"] == "failed" and "\033[1;31mUserError: Training ended" in failed.text
    outcome = done(account.run(unhurried["02-train-sft"], {DATA: data, TRAIN: failed.working}))
    assert "Continues the session of" in outcome.text and weights(outcome) == weights(undisturbed)
