"""The real notebooks 01 and 02 under the pipeline: a pause, a rank killed, the pipeline killed, and the way on."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from nbutils.core.files import read_json, read_jsonl
from nbutils.pipeline.supervise import marked, run_mark
from tests.faults.test_pipeline import last_line, wait_for

pytestmark = pytest.mark.soak

ROOT = Path(__file__).resolve().parents[2]
PROFILE = """
datasets: [{path: chitchat, fraction: 0.05}]
max_length: 256
max_steps: 160
tokens_per_step: 1024
checkpoint_steps: 20
eval_steps: 0
plain_loop_steps: 0
sample_prompts: [Hello]
processes: 2
"""
WAIT = 240


class Training:
    """Pipelines on one run folder with the real notebooks."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.profile = folder / "profile.yaml"
        self.profile.write_text(PROFILE)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "nbutils", "run", str(self.profile), "--run-dir", str(self.run), *arguments]
        return subprocess.Popen(
            line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Exit status and output; no process of the run may be left."""
        try:
            output, _ = process.communicate(timeout=WAIT)
        finally:
            process.kill()
        wait_for(lambda: not marked(run_mark(self.run)), 15)
        return process.returncode, output

    def under_way(self, steps: int = 30) -> None:
        """Waits until training has passed that many optimizer steps."""
        path = self.run / "train" / "metrics.jsonl"
        wait_for(lambda: path.is_file() and max((r.get("step", 0) for r in read_jsonl(path)), default=0) >= steps, WAIT)

    def ranks(self) -> list[psutil.Process]:
        found = [p for p in marked(run_mark(self.run)) if "nbutils.train.worker" in p.cmdline()]
        return [p for p in found if "nbutils.core.torchrun" not in p.cmdline()]

    def record(self) -> dict:
        return read_json(self.run / "train" / "stage.json")

    def goes_on(self, *arguments: str, words: str = "Training resumes at step") -> None:
        """The same command trains on from the last checkpoint to the end."""
        status, output = self.finish(self.start("--only", "train", *arguments))
        assert status == 0, output
        assert words in output
        assert self.record()["status"] == "done"
        sessions = [row for row in read_jsonl(self.run / "train" / "metrics.jsonl") if row.get("kind") == "session"]
        assert sessions and all(row["versions"]["torch"] == metadata.version("torch") for row in sessions)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    made = Training(tmp_path_factory.mktemp("data"))
    status, output = made.finish(made.start("--only", "data"))
    assert status == 0, output
    return made.run


@pytest.fixture
def training(prepared, tmp_path) -> Training:
    made = Training(tmp_path)
    shutil.copytree(prepared, made.run)
    return made


def test_a_signal_pauses_and_later_stages_may_use_the_checkpoint(training):
    process = training.start("--only", "train")
    training.under_way()
    process.send_signal(signal.SIGINT)
    status, output = training.finish(process)
    assert status == 0, output
    assert "train is paused at" in last_line(output)
    assert 0 < training.record()["facts"]["fraction"] < 1
    status, output = training.finish(training.start("--only", "metrics"))
    assert status == 1 and "is paused" in last_line(output)
    status, output = training.finish(training.start("--only", "metrics", "--allow-paused"))
    assert status == 0, output
    training.goes_on()


def test_a_signal_before_the_first_step_pauses_there(training):
    """A stage is made ready in tens of seconds, or minutes where a base is large: a request is not forgotten."""
    process = training.start("--only", "train", "-p", "max_steps=4")
    wait_for(lambda: (training.run / "train" / "stage.json").is_file(), WAIT)
    process.send_signal(signal.SIGTERM)
    status, output = training.finish(process)
    assert status == 0 and "train is paused at 0 % (step 0)" in last_line(output), output
    assert not list((training.run / "train" / "checkpoints").glob("step-*"))
    training.goes_on("-p", "max_steps=4", words="Training starts, 4 steps")


@pytest.mark.parametrize("rank", [0, 1])
def test_sigkill_of_one_rank(training, rank):
    process = training.start("--only", "train")
    training.under_way()
    (found,) = [p for p in training.ranks() if p.environ()["LOCAL_RANK"] == str(rank)]
    found.kill()
    status, output = training.finish(process)
    assert status == 1 and "02_train_sft.ipynb, cell In [" in output and "Traceback" not in output
    training.goes_on()


def test_sigkill_of_the_pipeline(training):
    process = training.start("--only", "train")
    training.under_way()
    process.kill()
    process.wait()
    wait_for(lambda: not marked(run_mark(training.run)), 30)
    training.goes_on()


def test_sigkill_of_the_kernel(training):
    process = training.start("--only", "train")
    training.under_way()
    (kernel,) = [p for p in marked(run_mark(training.run)) if any("ipykernel_launcher" in word for word in p.cmdline())]
    kernel.kill()
    status, output = training.finish(process)
    assert status == 1 and "the kernel was ended by SIGKILL" in last_line(output)
    training.goes_on()


def test_jupyters_interrupt_pauses(training):
    process = training.start("--only", "train")
    training.under_way()
    (kernel,) = [p for p in marked(run_mark(training.run)) if any("ipykernel_launcher" in word for word in p.cmdline())]
    kernel.send_signal(signal.SIGINT)
    status, output = training.finish(process)
    assert status == 0 and "train is paused at" in last_line(output)
    training.goes_on()


def test_a_second_signal_ends_training_now(training):
    """In the middle of steps that take seconds: the first signal waits for the step's end, the second for nothing."""
    slow = ("-p", "tokens_per_step=100000", "-p", "max_steps=3", "-p", "checkpoint_steps=1")
    process = training.start("--only", "train", *slow)
    wait_for((training.run / "train" / "checkpoints" / "step-000001" / "manifest.json").is_file, WAIT)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    for line in process.stdout:
        if "asking the stage to save a checkpoint and pause" in line:
            break
    process.send_signal(signal.SIGINT)
    status, output = training.finish(process)
    assert status == 143 and "train was ended by SIGTERM before it had saved a checkpoint" in output
    training.goes_on(*slow)
