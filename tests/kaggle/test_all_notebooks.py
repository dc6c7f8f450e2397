"""Every bundle of a profile on a simulated Kaggle: no parameters, no repository on the path, each fed the others."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from nbutils.core.files import read_json
from nbutils.core.stages import STAGES
from tests.conftest import ROOT
from tests.kaggle.attachments import BASE, FETCHED, TALK, WHEELS
from tests.kaggle.simulated import SMALL, Kaggle, Outcome, bundles, done, is_worker, wait_for

pytestmark = pytest.mark.soak

DEMO = ROOT / "params" / "demo.yaml"
REHEARSAL = ROOT / "params" / "kaggle_rehearsal.yaml"
SMALLER = [
    *("base_model=tiny", "datasets=[{path: chitchat, fraction: 0.1}]", "processes=0", "precision=auto"),
    *("max_length=128", "eval_fraction=0.2", "tokens_per_step=4096", "tokens_per_microbatch=512"),
    *("max_steps=40", "pause_after_steps=20", "checkpoint_steps=1", "log_steps=1", "sample_prompts=[Hi]"),
    *("tasks=[heldout_next_utterance]", "selection_items=20", "behaviour_prompts=2", "reply_tokens=8"),
    *("max_new_tokens=8", "parity_conversations=5", "parity_replies=2", "parity_tokens=8"),
]
"""The rehearsal on two CPU cores, without the hub."""


def test_six_notebooks_one_after_the_other_without_internet(bare, wheels, fetched, tmp_path):
    """On an image with Kaggle's libraries: model, conversations and packages are attached as Kaggle datasets.

    Each notebook installs what it lacks into the image, which later ones find there: sessions of the real Kaggle start
    from the image again.
    """
    offline = ["--offline", "--attach", FETCHED, "--attach", WHEELS, "-p", f"base_model={BASE}"]
    made = bundles(SMALL, tmp_path / "bundles", *offline, "-p", f"datasets=[{TALK}]")
    outcomes = one_after_the_other(made, Kaggle(tmp_path, bare, "nested"), {FETCHED: fetched, WHEELS: wheels})
    table = outcomes["data"].text
    for row in (
        *(r"plotly +>=6.0 +5\.24\.1 +\d", r"trl +\S+ +nothing +1\.16\.\d", r"lm-eval +\S+ +nothing +0\.4\.\d+"),
        *(r"chitchat-dataset +\S+ +nothing +\d", r"torch +\S+ +2\S+ +kept", r"transformers +\S+ +5\.0\.\d +kept"),
    ):
        assert re.search(row, table), (row, table[:3000])
    assert re.search(r"trl +\S+ +1\.16\.\d +kept", outcomes["train"].text)


def test_the_demo_on_an_image_with_the_oldest_libraries(oldest, wheels, tmp_path):
    """`params/demo.yaml` as it is but for a shorter training; the whole of it is `make demo` (tests/notebooks)."""
    made = bundles(DEMO, tmp_path / "bundles", "--offline", "--attach", WHEELS, "-p", "max_steps=150")
    outcomes = one_after_the_other(made, Kaggle(tmp_path, oldest), {WHEELS: wheels})
    run = outcomes["publish"].working / "runs" / "demo"
    assert read_json(run / "train" / "stage.json")["facts"]["step"] == 150
    assert read_json(run / "metrics" / "summary.json")["final"]["eval_loss_all_tokens"] < 6.0
    versions = read_json(run / "train" / "stage.json")["versions"]
    assert versions["transformers"].startswith("5.0.")
    (better,) = [p for p in read_json(run / "evaluate" / "results.json")["paired"] if p["metric"] == "word_perplexity"]
    assert better["word"] == "better"
    card = (run / "publish" / "README.md").read_text(encoding="utf-8")
    assert "transformers 5.0." in card and "## Use" in card


def test_the_rehearsal_fails_pauses_and_resumes_and_forecasts(oldest, wheels, tmp_path):
    options = [word for value in SMALLER for word in ("-p", value)]
    made = bundles(REHEARSAL, tmp_path / "bundles", "--offline", "--attach", WHEELS, *options)
    bundle = made["rehearsal-whole-pipeline"]
    account, own = Kaggle(tmp_path, oldest), f"someone/{bundle.name}"

    def fail(process: subprocess.Popen[str], working: Path) -> None:
        wait_for(working, "runs/kaggle_rehearsal/train/checkpoints/step-*/manifest.json", process)
        workers = [p for p in psutil.Process(process.pid).children(recursive=True) if is_worker(p)]
        os.kill(workers[0].pid, signal.SIGKILL)

    failed = done(account.run(bundle, {WHEELS: wheels}, during=fail))
    assert "\033[1;31mUserError: The pipeline ended" in failed.text
    assert status(failed, "train") == "failed" == ending(failed)

    paused = done(account.run(bundle, {WHEELS: wheels, own: failed.working}))
    assert "Continues the session" in paused.text and "Save Version" in paused.text
    assert status(paused, "train") == "paused" == ending(paused)
    step = stage_of(paused, "train")["facts"]["step"]
    assert 20 < step < 40

    last = done(account.run(bundle, {WHEELS: wheels, own: paused.working}))
    assert "Continues the session" in last.text and f"at step {step}" in last.text
    assert [status(last, stage.name) for stage in STAGES] == ["done"] * 6 and ending(last) == "done"
    assert re.search(r"training steps of the full run.* GPU-hours in 1 session.* notebook 04 come", last.text)
    started = [stage_of(outcome, "data")["started"] for outcome in (failed, paused, last)]
    assert len(set(started)) == 1  # the data was made once


def one_after_the_other(made: dict[str, Path], account: Kaggle, attached: dict[str, Path]) -> dict[str, Outcome]:
    """Runs the six bundles, each with just what its metadata name: outputs of earlier ones and Kaggle datasets."""
    outputs, outcomes = dict(attached), dict[str, Outcome]()
    for stage in STAGES:
        name = stage.file.removesuffix(".ipynb").replace("_", "-")
        facts = read_json(made[name] / "kernel-metadata.json")
        assert facts["enable_internet"] is False and facts["dataset_sources"] == list(attached)
        sources = {*facts["kernel_sources"], *facts["dataset_sources"]}
        inputs = {address: output for address, output in outputs.items() if address in sources}
        assert len(inputs) == len(stage.reads) + len(stage.consults) + len(attached)
        outcome = account.run(made[name], inputs)
        assert outcome.status == 0, f"{name}: {outcome.text[-3000:]}"
        (record,) = (outcome.working / "runs").glob(f"*/{stage.name}/stage.json")
        assert read_json(record)["status"] == "done"
        outputs[f"someone/{made[name].name}"] = outcome.working
        outcomes[stage.name] = outcome
    return outcomes


def stage_of(outcome: Outcome, name: str) -> dict:
    return read_json(outcome.working / "runs" / "kaggle_rehearsal" / name / "stage.json")


def status(outcome: Outcome, name: str) -> str:
    return stage_of(outcome, name)["status"]


def ending(outcome: Outcome) -> str:
    return read_json(outcome.working / "runs" / "kaggle_rehearsal" / "session.json")["status"]
