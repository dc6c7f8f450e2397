"""Every bundle of a profile on a simulated Kaggle: no parameters, no repository on the path, each fed the others."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from nbutils.core.files import read_json, read_jsonl
from nbutils.core.run.layout import Run
from nbutils.core.stages import STAGES
from tests.conftest import ROOT
from tests.kaggle.attachments import BASE, FETCHED, TALK, WHEELS
from tests.kaggle.simulated import NESTED, SMALL, Kaggle, Outcome, bundles, done, kill_worker, wait_for

pytestmark = pytest.mark.soak


def test_six_notebooks_one_after_the_other_without_internet(bare, wheels, fetched, tmp_path):
    """On an image with Kaggle's libraries, each with just what its metadata name: outputs of earlier notebooks, and
    model, conversations and packages as Kaggle datasets.

    Each notebook installs what it lacks into the image, which later ones find there: sessions of the real Kaggle start
    from the image again.
    """
    offline = ["--offline", "--attach", FETCHED, "--attach", WHEELS, "-p", f"base_model={BASE}"]
    made = bundles(SMALL, tmp_path / "bundles", *offline, "-p", f"datasets=[{TALK}]", "-p", "plain_loop_steps=3")
    account, attached = Kaggle(tmp_path, bare, NESTED), {FETCHED: fetched, WHEELS: wheels}
    outputs, outcomes = dict(attached), dict[str, Outcome]()
    for stage in STAGES:
        bundle = made[stage.file.removesuffix(".ipynb").replace("_", "-")]
        facts = read_json(bundle / "kernel-metadata.json")
        assert facts["enable_internet"] is False and facts["dataset_sources"] == list(attached)
        inputs = {name: outputs[name] for name in (*facts["kernel_sources"], *attached) if name in outputs}
        assert len(inputs) == len(stage.reads) + len(stage.consults) + len(attached)
        outcome = outcomes[stage.name] = done(account.run(bundle, inputs))
        run = Run(outcome.working / "runs" / "small")
        assert run.state(stage.name) == "done"
        outputs[facts["id"]] = outcome.working
    table = outcomes["data"].text
    for row in (
        *(r"plotly +>=6.0 +5\.24\.1 +\d", r"trl +\S+ +nothing +1\.16\.\d", r"lm-eval +\S+ +nothing +0\.4\.\d+"),
        *(r"chitchat-dataset +\S+ +nothing +\d", r"torch +\S+ +2\S+ +kept", r"transformers +\S+ +5\.0\.\d +kept"),
    ):
        assert re.search(row, table), (row, table[:3000])
    assert re.search(r"trl +\S+ +1\.16\.\d +kept", outcomes["train"].text)
    beside = re.findall(r"(?m)^[123] +[\d.]+ +(\d\.\d+e-\d+)", outcomes["train"].text)
    assert len(beside) == 3 and all(float(each) < 1e-3 for each in beside), beside  # the worker equals the plain loop
    record = run.record("train")
    assert record and record["facts"]["step"] == 8 and record["versions"]["transformers"].startswith("5.0.")
    paired = read_json(run.folder("evaluate") / "results.json")["paired"]
    assert [each["word"] for each in paired if each["metric"] == "word_perplexity"] == ["better"]
    card = (run.folder("publish") / "README.md").read_text(encoding="utf-8")
    assert "transformers 5.0." in card and "## Use" in card


def test_the_rehearsal_fails_pauses_and_goes_on_with_newer_libraries(oldest, wheels, account, tmp_path):
    """The whole pipeline in three sessions, on two CPU cores and without the hub."""
    shorter = {"max_steps": 12, "pause_after_steps": 6, "tasks": ["heldout_next_utterance"]}
    here = {"run_dir": "runs/kaggle_rehearsal", "precision": "auto"}
    values = yaml.safe_load(SMALL.read_text()) | here | shorter
    options = [word for name, value in values.items() for word in ("-p", f"{name}={json.dumps(value)}")]
    profile = ROOT / "params" / "kaggle_rehearsal.yaml"
    made = bundles(profile, tmp_path / "bundles", "--offline", "--attach", WHEELS, *options)
    bundle = made["rehearsal-whole-pipeline"]
    old, own = Kaggle(tmp_path / "old", oldest), f"someone/{bundle.name}"

    def fail(process: subprocess.Popen[str], working: Path) -> None:
        wait_for(working, "runs/kaggle_rehearsal/train/checkpoints/step-*/manifest.json", process)
        kill_worker(process)

    failed = done(old.run(bundle, {WHEELS: wheels}, during=fail))
    assert "\033[1;31mUserError: The pipeline ended" in failed.text
    assert status(failed, "train") == "failed" == ending(failed)

    paused = done(old.run(bundle, {WHEELS: wheels, own: failed.working}))
    assert "Continues the session" in paused.text and "Save Version" in paused.text
    assert status(paused, "train") == "paused" == ending(paused)
    step = stage_of(paused, "train")["facts"]["step"]
    assert 6 < step < 12

    last = done(account.run(bundle, {WHEELS: wheels, own: paused.working}))
    assert "Continues the session" in last.text and f"at step {step}" in last.text
    assert "transformers 5.0.0 (now " in last.text
    rows = read_jsonl(last.working / "runs" / "kaggle_rehearsal" / "kaggle.jsonl")
    assert rows[0]["versions"]["transformers"] == "5.0.0" != rows[-1]["versions"]["transformers"]
    assert [status(last, stage.name) for stage in STAGES] == ["done"] * 6 and ending(last) == "done"
    assert re.search(r"training steps of the full run.* GPU-hours in 1 session.* notebook 04 come", last.text)
    started = [stage_of(outcome, "data")["started"] for outcome in (failed, paused, last)]
    assert len(set(started)) == 1  # the data was made once


def stage_of(outcome: Outcome, name: str) -> dict:
    return read_json(outcome.working / "runs" / "kaggle_rehearsal" / name / "stage.json")


def status(outcome: Outcome, name: str) -> str:
    return stage_of(outcome, name)["status"]


def ending(outcome: Outcome) -> str:
    return read_json(outcome.working / "runs" / "kaggle_rehearsal" / "session.json")["status"]
