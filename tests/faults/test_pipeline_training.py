"""The real notebooks 01 and 02 under the pipeline: a pause, a rank killed, the pipeline killed, and the way on."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from nbutils.core.files import read_json, read_jsonl
from nbutils.core.run.checkpoints import Checkpoint
from nbutils.pipeline.supervise import marked, run_mark
from tests.faults.test_pipeline import last_line, wait_for

pytestmark = pytest.mark.soak

ROOT = Path(__file__).resolve().parents[2]
PROFILE = """
datasets: [{path: chitchat, fraction: 0.05}]
max_length: 256
max_steps: 160
tokens_per_step: 512
log_steps: 1
checkpoint_steps: 10
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

    def start(self, *arguments: str, stage: str = "train") -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "nbutils", "run", str(self.profile), "--run-dir", str(self.run), "--only", stage]
        return subprocess.Popen(
            [*line, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Exit status and output; no process of the run may be left."""
        try:
            output, _ = process.communicate(timeout=WAIT)
        finally:
            process.kill()
        wait_for(lambda: not marked(run_mark(self.run)), 30)
        return process.returncode, output

    def rows(self) -> list[dict]:
        path = self.run / "train" / "metrics.jsonl"
        return read_jsonl(path) if path.is_file() else []

    def under_way(self) -> None:
        """Waits until training has passed a checkpoint more."""
        newest = [max((row["step"] for row in self.rows()), default=0)]
        wait_for(lambda: self.rows()[-1:] and self.rows()[-1]["step"] >= newest[0] + 12, WAIT)

    def process(self, words: str, **environment: str) -> psutil.Process:
        """The one process of the run whose command and environment hold these."""
        (found,) = [
            p for p in marked(run_mark(self.run))
            if words in " ".join(p.cmdline()) and environment.items() <= p.environ().items()
        ]  # fmt: skip
        return found

    def record(self) -> dict:
        return read_json(self.run / "train" / "stage.json")

    def goes_on(self, *arguments: str, words: str = "Training resumes at step") -> None:
        """The same command trains on from the last checkpoint to the end."""
        status, output = self.finish(self.start(*arguments))
        assert status == 0, output
        assert words in output
        assert self.record()["status"] == "done"
        sessions = [row for row in self.rows() if row.get("kind") == "session"]
        assert sessions and all(row["versions"]["torch"] == metadata.version("torch") for row in sessions)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    made = Training(tmp_path_factory.mktemp("data"))
    status, output = made.finish(made.start(stage="data"))
    assert status == 0, output
    return made.run


@pytest.fixture
def training(prepared, tmp_path) -> Training:
    made = Training(tmp_path)
    shutil.copytree(prepared, made.run)
    return made


def kill_rank(rank: str) -> Callable:
    return lambda training, _: training.process("nbutils.train.worker", LOCAL_RANK=rank).kill()


FAULTS: dict[str, tuple[Callable, int, str]] = {
    "rank 0": (kill_rank("0"), 1, "02_train_sft.ipynb, cell In ["),
    "rank 1": (kill_rank("1"), 1, "02_train_sft.ipynb, cell In ["),
    "pipeline": (lambda training, process: process.kill(), -signal.SIGKILL, ""),
    "kernel": (lambda training, _: training.process("ipykernel_launcher").kill(), 1, "the kernel was ended by SIGKILL"),
    "jupyter": (
        lambda training, _: training.process("ipykernel_launcher").send_signal(signal.SIGINT),
        0,
        "is paused at",
    ),
    "pause": (lambda training, process: process.send_signal(signal.SIGINT), 0, "train is paused at"),
}
"""What is done to a training, the exit status, and what is said."""


@pytest.mark.parametrize("faults", [("rank 0", "rank 1", "pipeline"), ("kernel", "jupyter", "pause")], ids=str)
def test_after_one_fault_and_the_next_the_same_command_goes_on(training, faults):
    words = "Training starts"
    for fault in faults:
        harm, status, told = FAULTS[fault]
        process = training.start()
        training.under_way()
        harm(training, process)
        found, output = training.finish(process)
        assert found == status and told in output and words in output and "Traceback" not in output, (fault, output)
        words = "Training resumes at step"
    if training.record()["status"] == "paused":  # later stages may use the checkpoint, where they are told to
        assert 0 < training.record()["facts"]["fraction"] < 1
        for allowed, status in (((), 1), (("--allow-paused",), 0)):
            found, output = training.finish(training.start(*allowed, stage="metrics"))
            assert found == status and ("is paused" in last_line(output)) is bool(status), output
    training.goes_on()


def test_a_signal_before_the_first_step_pauses_there(training):
    """A stage is made ready in tens of seconds, or minutes where a base is large: a request is not forgotten."""
    process = training.start("-p", "max_steps=4")
    wait_for(lambda: (training.run / "train" / "stage.json").is_file(), WAIT)
    process.send_signal(signal.SIGTERM)
    status, output = training.finish(process)
    assert status == 0 and "train is paused at 0 % (step 0)" in last_line(output), output
    assert not list((training.run / "train" / "checkpoints").glob("step-*"))
    training.goes_on("-p", "max_steps=4", words="Training starts, 4 steps")


def test_a_second_signal_ends_training_now(training):
    """In the middle of steps that take seconds: the first signal waits for the step's end, the second for nothing."""
    process = training.start("-p", "tokens_per_step=100000", "-p", "max_steps=3", "-p", "checkpoint_steps=1")
    checkpoint = training.run / "train" / "checkpoints" / "step-000001"
    wait_for((checkpoint / "manifest.json").is_file, WAIT)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    for line in process.stdout:
        if "asking the stage to save a checkpoint and pause" in line:
            break
    process.send_signal(signal.SIGINT)
    status, output = training.finish(process)
    assert status == 143 and "train was ended by SIGTERM before it had saved a checkpoint" in output
    assert Checkpoint(checkpoint).damage() is None  # from which the same command goes on
