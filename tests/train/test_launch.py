"""Starting the workers: who failed and why, secrets in their log, a hang at the first exchange, trackers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import read_jsonl
from nbutils.core.hardware import Gpu
from nbutils.core.secrets import HIDDEN
from nbutils.train import launch
from nbutils.train.launch import LOG_LINES, events_of, failure
from tests.train.runs import small_settings

REPORT = """
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
nbutils.train.worker FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-01-01_00:00:00
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 28701)
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  rank      : 1 (local_rank: 1)
  exitcode  : CODE (pid: 28702)
============================================================
"""
LAUNCHERS_OWN = '\nTraceback (most recent call last):\n  File "<frozen runpy>", line 198, in _run_module_as_main\n'


def told(log: str, code: int, status: int = 1, tmp: Path = Path("worker.log")) -> str:
    return failure({}, log + LAUNCHERS_OWN + REPORT.replace("CODE", str(code)), tmp, status)


def test_the_killed_rank_and_its_signal_are_named():
    text = told("something", -9)
    assert text.startswith("Training ended: rank 1 was killed by SIGKILL (often the machine ran out of memory")
    assert "rank 1 was killed by SIGSEGV;" in told("something", -11)
    assert "frozen runpy" not in text and text.endswith("\nsomething")


def test_the_last_40_lines_of_the_failing_rank_are_shown():
    log = "".join(f"[rank {i % 2}] line {i}\n" for i in range(200))
    text = told(log, 1)
    assert text.startswith("Training ended: rank 1 failed with status 1; the last lines of")
    lines = text.splitlines()[1:]
    assert len(lines) == LOG_LINES and lines[-1] == "[rank 1] line 199" and all(x.startswith("[rank 1]") for x in lines)


def test_without_a_report_the_status_and_the_log_have_to_do():
    assert failure({}, "no such program", Path("w.log"), 127).startswith("Training ended with status 127; the last")
    assert failure({"event": "error", "message": "A sentence."}, "log", Path("w.log"), 3) == "A sentence."


@pytest.fixture
def faulty(monkeypatch):
    """Makes `events_of` start the worker with a planted fault."""

    def plant(fault: str, **environment: str) -> None:
        own = launch.torchrun_command
        monkeypatch.setattr(
            launch,
            "torchrun_command",
            lambda *a: [w.replace("nbutils.train.worker", "tests.faults.worker_with_faults") for w in own(*a)],
        )
        for name, value in ({"FAULT": fault} | environment).items():
            monkeypatch.setenv(name, value)

    return plant


@pytest.mark.slow
def test_a_failing_rank_is_shown_and_its_secret_is_not(tmp_path, faulty):
    secret = "hf_" + "planted" * 4
    faulty("raises:2:1", HF_TOKEN=secret)
    with pytest.raises(UserError) as caught:
        list(events_of(small_settings(tmp_path, sample_prompts=[]), tmp_path / "train"))
    text = str(caught.value)
    assert text.startswith("Training ended: rank 1 failed with status 1")
    assert f"[rank 1] RuntimeError: planted, with the secret {HIDDEN}" in text
    assert "[rank 0]" not in text and "ChildFailedError" not in text
    log = (tmp_path / "train" / "worker.log").read_text()
    assert secret not in log and "planted, with the secret" in log


@pytest.mark.slow
def test_a_rank_that_never_joins_ends_soon_with_advice(tmp_path, faulty):
    faulty("never_joins:1:1", NBUTILS_HANG_SECONDS="3")
    started = time.monotonic()
    with pytest.raises(UserError, match="could not reach each other; set processes to 1"):
        list(events_of(small_settings(tmp_path), tmp_path / "train"))
    assert time.monotonic() - started < 300  # and not the half hour that torch would wait
    mine = [p for p in psutil.Process(os.getpid()).children(recursive=True) if "worker_with_faults" in p.cmdline()]
    assert mine == []


@pytest.mark.slow
def test_workers_die_with_their_parent_also_under_sigkill(tmp_path):
    settings = small_settings(tmp_path, max_steps=100_000, checkpoint_steps=0, eval_steps=0)
    (tmp_path / "train").mkdir()
    code = (
        "import json, sys; from pathlib import Path; from nbutils.train.launch import events_of\n"
        "from nbutils.train.settings import TrainSettings; s = TrainSettings(**json.loads(sys.argv[1]))\n"
        "for event in events_of(s, s.run_path / 'train'): pass"
    )
    kernel = subprocess.Popen([sys.executable, "-c", code, settings.model_dump_json()])
    try:
        wait_until(lambda: '"step": 3,' in (tmp_path / "train" / "progress.jsonl").read_text(), 120)
        workers = psutil.Process(kernel.pid).children(recursive=True)
        assert len(workers) >= 3  # torchrun and two processes
    finally:
        kernel.kill()
        kernel.wait()
    wait_until(lambda: not any(alive(worker) for worker in workers), 30)


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if condition():
                return
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.2)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_on_nccl_a_hang_is_tried_once_more_without_peer_to_peer(tmp_path, monkeypatch, capsys):
    tried: list[str | None] = []

    def hang(command, environment, run, folder):
        tried.append(environment.get("NCCL_P2P_DISABLE"))
        raise launch._Hang
        yield {}

    monkeypatch.setattr(launch, "_run", hang)
    monkeypatch.setattr(launch, "nvidia_gpus", lambda: (Gpu("Tesla T4", (7, 5), 14.7),) * 2)
    monkeypatch.delenv("NCCL_P2P_DISABLE", raising=False)
    with pytest.raises(UserError, match="could not reach each other, also with NCCL_P2P_DISABLE=1; set processes to 1"):
        list(events_of(small_settings(tmp_path), tmp_path))
    assert tried == [None, "1"] and "trying once more without peer-to-peer" in capsys.readouterr().out


@pytest.mark.slow
def test_a_tracker_gets_the_logged_numbers(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = small_settings(
        tmp_path, processes=1, report_to=["tensorboard"], max_steps=6, eval_steps=3, sample_prompts=[]
    )
    list(events_of(settings, tmp_path / "train"))
    folder = tmp_path / "train" / "trackers"
    assert [file.name for file in folder.iterdir() if "tfevents" in file.name]
    events = accumulator.EventAccumulator(str(folder)).Reload()
    rows = read_jsonl(tmp_path / "train" / "metrics.jsonl")
    for kind, column, tag in (("train", "loss", "train/loss"), ("eval", "eval_loss", "eval/loss")):
        logged = [(row["step"], row[column]) for row in rows if row["kind"] == kind]
        seen = [(event.step, event.value) for event in events.Scalars(tag)]
        assert seen == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged], tag
    assert not list((tmp_path / "train" / "checkpoints").glob("runs*"))
