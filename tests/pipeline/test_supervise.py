"""The small parts behind the pipeline's faults; with real processes and signals they are tested in `tests/faults`."""

import os
import signal
import subprocess

import pytest

from nbutils.pipeline import execution
from nbutils.pipeline.choice import Options
from nbutils.pipeline.display import Display
from nbutils.pipeline.run import Job, StageFailed
from nbutils.pipeline.supervise import MARK, Supervisor, end, marked, run_mark, taking
from tests.pipeline.fake import write_notebooks


def test_nohup_is_respected_and_the_other_signals_are_taken(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        supervisor = Supervisor(tmp_path, print)
        with taking(supervisor.take):
            signal.raise_signal(signal.SIGHUP)
            assert supervisor.asked is None
            signal.raise_signal(signal.SIGTERM)
            assert supervisor.asked == signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def at_work(tmp_path):
    """A supervisor whose stage cannot pause and has no kernel yet."""
    supervisor = Supervisor(tmp_path, print)
    with taking(supervisor.take), supervisor.stage(pausable=False):
        yield supervisor


def test_a_signal_for_a_kernel_that_has_just_ended_is_no_error(at_work):
    ended = subprocess.Popen(["true"])
    ended.wait()
    at_work.kernel_started(ended.pid)
    signal.raise_signal(signal.SIGINT)
    assert at_work.asked == signal.SIGINT and at_work.stops


def test_a_signal_before_the_kernel_has_started_is_passed_on_to_it(at_work):
    signal.raise_signal(signal.SIGINT)
    kernel = subprocess.Popen(["sleep", "60"])
    at_work.kernel_started(kernel.pid)
    assert kernel.wait(timeout=5) == -signal.SIGINT


def test_all_processes_of_a_mark_are_ended_a_stubborn_one_and_an_orphan_too(tmp_path):
    mark = run_mark(tmp_path) + "-1"
    stubborn = "trap '' TERM; (setsid sleep 60 &); sleep 60; sleep 60"
    shell = subprocess.Popen(["sh", "-c", stubborn], env={**os.environ, MARK: mark + "-x"})
    while len(marked(mark)) < 3:
        assert shell.poll() is None
    assert end(mark, patience=0.5) >= 3
    assert not marked(mark) and shell.wait(timeout=5) == -signal.SIGKILL


def test_no_mark_is_no_mark_of_all_processes():
    with pytest.raises(ValueError, match="every process"):
        end("")


@pytest.fixture
def executed(tmp_path):
    """Executes notebook 01 in a kernel."""

    def execute(parameters, options, **more):
        source, supervisor = write_notebooks(tmp_path / "source") / "01_first.ipynb", Supervisor(tmp_path, print)
        target = tmp_path / "notebooks" / source.name
        job = Job(source, target, parameters, supervisor, Display(), options, **more)
        with supervisor.stage(pausable=False):
            execution.execute(job)

    return execute


def test_how_a_notebook_is_executed(executed, monkeypatch):
    """Saved every 30 s; a time limit in whole seconds, rounded up; a good cell may be read late."""
    seen = {}

    def start_new_kernel(self, **kwargs):
        seen.update(timeout=self.timeout, raises=self.raise_on_iopub_timeout, autosave=self.book.autosave_cell_every)
        raise OSError("no kernel")

    monkeypatch.setattr(execution.NotebookClient, "start_new_kernel", start_new_kernel)
    with pytest.raises(StageFailed):
        executed({}, Options(cell_minutes=0.33))
    assert seen == {"timeout": 20, "raises": False, "autosave": 30}


@pytest.mark.soak
def test_what_a_long_cell_has_said_so_far_is_in_the_file(executed, tmp_path):
    executed({"run_dir": str(tmp_path), "note": "long"}, Options(), autosave_seconds=0.5)
    assert '"so far\\n"' in (tmp_path / "first" / "meanwhile.txt").read_text()


def test_a_kernel_ended_by_sigkill_is_likely_a_matter_of_memory():
    words = execution.dead_kernel("a.ipynb, code cell 3", -signal.SIGKILL, "")
    assert words.startswith("a.ipynb, code cell 3: the kernel was ended by SIGKILL (often") and "memory" in words
    assert "memory" not in execution.dead_kernel("a.ipynb, code cell 3", -signal.SIGTERM, "")


@pytest.mark.parametrize(
    "name,value,words",
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate", "memory ran out (CUDA out of memory"),
        ("UserError", "There is no model:\nlast lines", "There is no model."),
        ("ValueError", "", "raised ValueError."),
    ],
)
def test_an_exception_in_a_cell_is_one_sentence(name, value, words, tmp_path):
    sentence = execution.cell_sentence(name, value, "a.ipynb, cell In [3]", tmp_path)
    assert sentence.startswith("a.ipynb, cell In [3]") and words in sentence and "\n" not in sentence
