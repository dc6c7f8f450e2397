"""The small parts behind the pipeline's faults; with real processes and signals they are tested in `tests/faults`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from nbclient.exceptions import DeadKernelError

from nbutils.core import pause
from nbutils.pipeline import engine, faults, processes
from nbutils.pipeline.display import Display
from nbutils.pipeline.job import Job
from nbutils.pipeline.signals import Signals
from tests.pipeline.fake import write_notebooks


@pytest.fixture
def job(tmp_path) -> Job:
    notebooks = write_notebooks(tmp_path / "notebooks")
    return Job(notebooks / "01_first.ipynb", tmp_path / "out.ipynb", {}, "mark", Display(), cell=3)


@pytest.fixture
def kills(tmp_path, monkeypatch) -> Path:
    """A container's count of what was ended for lack of memory."""
    events = tmp_path / "memory.events"
    monkeypatch.setattr(processes, "MEMORY_EVENTS", events)
    return events


def test_the_systems_count_of_processes_ended_for_lack_of_memory(kills):
    assert processes.oom_kills() == 0
    kills.write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n")
    assert processes.oom_kills() == 2


def test_a_kernel_that_the_system_ended_for_lack_of_memory(job, kills):
    kills.write_text("oom_kill 1\n")
    job.kernel_exit = -signal.SIGKILL
    words = faults.sentence(DeadKernelError("Kernel died"), job, job.target.parent, oom_before=0)
    assert words.startswith("01_first.ipynb, code cell 3: the system ended the kernel because memory ran out; use a")
    words = faults.sentence(DeadKernelError("Kernel died"), job, job.target.parent, oom_before=1)
    assert "the kernel was ended by SIGKILL (often the system's answer to a lack of memory" in words


def test_nohup_is_respected_and_the_other_signals_are_taken():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals = Signals(lambda text: None)
        with signals.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.asked is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.asked == signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_for_a_kernel_that_has_just_ended_is_no_error(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    signals = Signals(lambda text: None)
    with signals.listening(), signals.stage(tmp_path, "mark", pausable=False):
        signals.kernel_started(ended.pid)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.asked == signal.SIGINT


def test_how_the_engine_executes_a_notebook(job, monkeypatch):
    """Saved every 30 s; a time limit in whole seconds, rounded up; a good cell may be read late."""
    seen = {}

    def execute(self, **kwargs):
        seen.update(timeout=self.timeout, raises=self.raise_on_iopub_timeout, autosave=self.nb_man.autosave_cell_every)
        return self.nb

    monkeypatch.setattr(engine._Client, "execute", execute)
    job.cell_seconds = 0.33 * 60
    engine.execute(job)
    assert seen == {"timeout": 20, "raises": False, "autosave": 30}
    job.cell_seconds = None
    engine.execute(job)
    assert seen["timeout"] is None


def test_how_a_paused_stage_ends_its_notebook_is_told_from_other_errors():
    assert faults.is_pause(pause.StagePaused("paused at step 3"))
    assert not faults.is_pause(DeadKernelError("Kernel died"))
