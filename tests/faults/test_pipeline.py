"""Every way in which a run can end badly: real processes, real kernels, real signals, real disks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from nbutils.core.files import read_json
from nbutils.pipeline import execution
from nbutils.pipeline.choice import Options
from nbutils.pipeline.display import Display
from nbutils.pipeline.run import Job
from nbutils.pipeline.supervise import Supervisor, marked, run_mark
from tests.pipeline.fake import command, environment, write_notebooks

PATIENCE = 60  # seconds; what is waited for comes within a few, the rest is for a busy machine


class Bench:
    """A profile, its notebooks, and pipelines started on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.notebooks = write_notebooks(folder / "notebooks")
        self.profile = folder / "profile.yaml"
        self.profile.write_text("# all defaults\n")

    def start(self, *arguments: object, program: list[str] | None = None, **env: str) -> subprocess.Popen[str]:
        line = (program or command(self.profile, "--run-dir", self.run)) + [str(argument) for argument in arguments]
        return subprocess.Popen(
            line, env=environment(self.notebooks, **env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd="/", start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )  # fmt: skip

    def in_the_middle(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """A pipeline whose cell has begun and does not end by itself."""
        process = self.start(*arguments, **options)
        wait_for((self.run / "child-started").exists)
        return process

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Exit status and output; no process of the run may be left."""
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        wait_for(lambda: not marked(run_mark(self.run)), 5)
        return process.returncode, output

    def go(self, *arguments: object, **env: str) -> tuple[int, str]:
        return self.finish(self.start(*arguments, **env))

    def kernel(self) -> psutil.Process:
        (found,) = [p for p in marked(run_mark(self.run)) if any("ipykernel_launcher" in word for word in p.cmdline())]
        return found

    def status(self, stage: str) -> str:
        path = self.run / stage / "stage.json"
        return read_json(path)["status"] if path.is_file() else "absent"

    def cells(self, name: str) -> list[str]:
        """What papermill says about the executed notebook's code cells."""
        cells = read_json(self.run / "notebooks" / name)["cells"]
        return [cell["metadata"]["papermill"]["status"] for cell in cells if "papermill" in cell["metadata"]]


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def last_line(output: str) -> str:
    return output.strip().splitlines()[-1]


def goes_on(bench: Bench, *arguments: object) -> None:
    """The same command without the fault goes on from the stage interrupted."""
    status, output = bench.go(*arguments)
    assert status == 0, output
    assert "01_first.ipynb" not in output and "[2/3] second" in output
    assert [bench.status(name) for name in ("first", "second", "third")] == ["done"] * 3


def test_a_pause_by_signal_and_the_way_on(bench):
    """The whole road on real kernels: SIGINT pauses, the next run goes on, one more has nothing to do."""
    process = bench.start("-p", "step_seconds=0.2", "-p", "steps=60")
    wait_for(lambda: bench.status("second") == "running")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    status, output = bench.finish(process)
    assert status == 0, output
    assert "asking the stage to save a checkpoint and pause" in output
    assert "second is paused at" in last_line(output) and "go on" in last_line(output)
    assert not (bench.run / "pause-requested").exists()
    goes_on(bench, "-p", "steps=60")
    began = time.monotonic()
    status, output = bench.go("-p", "steps=60")
    assert status == 0 and "Nothing to do" in last_line(output)
    assert time.monotonic() - began < 15


IN_CELL = [
    ("exception", (), "02_second.ipynb, cell In [4] raised ValueError: the answer is not 42."),
    ("exit", (), "cell In [4] called sys.exit(3)"),
    ("exit0", (), "cell In [4] called sys.exit()"),
    ("os_exit", (), "code cell 4: the kernel died with exit status 7"),
    ("memory", (), "cell In [4]: memory ran out"),
    ("child", ("--cell-minutes", "0.25"), "02_second.ipynb, code cell 4 took longer than --cell-minutes 0.25 allows"),
]


@pytest.mark.soak
@pytest.mark.parametrize("fault,arguments,words", IN_CELL)
def test_faults_in_a_cell(bench, fault, arguments, words):
    status, output = bench.go("-p", f"fault={fault}", *arguments)
    assert status == 1, output
    assert words in last_line(output) and str(bench.run / "notebooks" / "02_second.ipynb") in last_line(output)
    assert "Traceback" not in output
    cells = bench.cells("02_second.ipynb")
    assert "failed" in cells and "completed" not in cells[cells.index("failed") + 1 :]
    assert bench.status("second") == "failed"
    goes_on(bench)


@pytest.mark.soak
def test_a_kernel_that_does_not_start(bench, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ipykernel_launcher.py").write_text("raise ImportError('no zmq here')")
    paths = f"{tmp_path / 'broken'}{os.pathsep}{Path(__file__).resolve().parents[2]}"
    status, output = bench.go(PYTHONPATH=paths)
    assert status == 1
    assert "The kernel for 01_first.ipynb did not start (ImportError: no zmq here)" in last_line(output)
    assert "completed" not in bench.cells("01_first.ipynb")
    assert bench.go()[0] == 0


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    if os.geteuid() != 0 or subprocess.run(["mount", *arguments, str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small or read-only disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.soak
def test_a_full_disk(bench):
    with mounted(bench.run, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        status, output = bench.go("-p", "fault=full_disk")
        assert status == 1
        assert "is full: free some space and run the same command again." in last_line(output)
        assert json.loads((bench.run / "notebooks" / "02_second.ipynb").read_text())["cells"]
        (bench.run / "second" / "big.bin").unlink()
        goes_on(bench)


@pytest.mark.soak
def test_a_read_only_run_folder(bench):
    assert bench.go("--only", "first")[0] == 0
    with mounted(bench.run, "--bind", str(bench.run)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(bench.run)], check=True)
        status, output = bench.go()
        assert status == 1
        assert "cannot be written (Read-only file system)" in last_line(output)
        assert len(output.strip().splitlines()) == 1


@pytest.mark.soak
def test_two_pipelines_at_once(bench):
    process = bench.in_the_middle("-p", "fault=sleep")
    line = command(bench.profile, "--run-dir", bench.run)
    other = subprocess.run(line, env=environment(bench.notebooks), capture_output=True, text=True)
    assert other.returncode == 1
    assert f"process {process.pid} on " in other.stderr and "is at work in" in other.stderr
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert bench.finish(process)[0] > 128


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_pause_too(bench, number):
    process = bench.start("-p", "step_seconds=0.2", "-p", "steps=300")
    wait_for(lambda: bench.status("second") == "running")
    time.sleep(1)
    process.send_signal(number)
    status, output = bench.finish(process)
    assert status == 0 and "second is paused at" in last_line(output)


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stage_that_cannot_pause_is_stopped(bench, number):
    process = bench.in_the_middle("-p", "note=sleep")
    began = time.monotonic()
    process.send_signal(number)
    status, output = bench.finish(process)
    assert status == 128 + number
    assert f"first was stopped by {number.name}" in last_line(output)
    assert time.monotonic() - began < 15
    assert bench.go()[0] == 0


@pytest.mark.soak
def test_a_second_signal_ends_it_now(bench):
    process = bench.in_the_middle("-p", "fault=child")
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    status, output = bench.finish(process)
    assert status == 130 and "Ending the stage now" in output
    assert time.monotonic() - began < 10
    goes_on(bench)


@pytest.mark.soak
def test_a_stage_that_does_not_answer_is_ended_after_the_grace(bench):
    code = "from nbutils.core.run import pause; pause.GRACE_SECONDS = 3; from tests.pipeline.fake import main; main()"
    program = [sys.executable, "-c", code, "run", str(bench.profile), "--run-dir", str(bench.run)]
    process = bench.in_the_middle("-p", "fault=child", program=program)
    process.send_signal(signal.SIGTERM)
    status, output = bench.finish(process)
    assert status == 143 and "ended by SIGTERM before it had saved a checkpoint" in last_line(output)


@pytest.mark.soak
def test_sigkill_of_the_pipeline_alone(bench):
    process = bench.in_the_middle("-p", "fault=child")
    assert len(marked(run_mark(bench.run))) >= 2
    process.kill()
    process.wait()
    wait_for(lambda: not marked(run_mark(bench.run)), 20)
    goes_on(bench)


@pytest.mark.soak
@pytest.mark.parametrize(
    "fault,number,words",
    [
        ("child", signal.SIGKILL, "code cell 4: the kernel was ended by SIGKILL"),
        ("sleep", signal.SIGINT, "cell In [4] was interrupted; run the same command again"),
    ],
)
def test_a_signal_to_the_kernel_alone(bench, fault, number, words):
    process = bench.in_the_middle("-p", f"fault={fault}")
    bench.kernel().send_signal(number)
    status, output = bench.finish(process)
    assert status == 1 and words in last_line(output)
    goes_on(bench)


@pytest.mark.soak
def test_leftovers_of_an_earlier_run_are_ended_first(bench):
    bench.run.mkdir()
    left = subprocess.Popen(["sleep", "300"], env={**os.environ, "NBUTILS_PIPELINE": run_mark(bench.run) + "-1-x"})
    status, output = bench.go()
    assert status == 0 and "Ended 1 process(es) that an earlier run had left behind." in output
    assert left.wait(timeout=5) != 0


@pytest.mark.soak
def test_a_long_silent_cell_is_saved_meanwhile(bench, monkeypatch):
    for name, value in environment(bench.notebooks).items():
        monkeypatch.setenv(name, value)
    assert bench.go("--only", "first")[0] == 0
    target = bench.run / "notebooks" / "02_second.ipynb"
    values = {"run_dir": str(bench.run), "fault": "silent"}
    supervisor = Supervisor(bench.run, print)
    job = Job(
        bench.notebooks / "02_second.ipynb", target, values, supervisor, Display(), Options(), autosave_seconds=0.5
    )
    saves = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            if (bench.run / "silent").exists() and target.exists():
                saves.add(target.stat().st_mtime_ns)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with supervisor.stage(pausable=True):
        execution.execute(job)
    done.set()
    watcher.join()
    assert len(saves) >= 4  # of a cell of 5 s


def test_secrets_stand_in_no_file_and_no_output(bench):
    token, kaggle = "hf_" + "Q7" * 17, "0123456789abcdef0123456789abcdef"
    status, output = bench.go("-p", "fault=secret", HF_TOKEN=token, KAGGLE_KEY=kaggle)
    assert status == 1 and "cell In [4] raised ValueError: 401 with [secret]" in last_line(output)
    assert token not in output and kaggle not in output
    files = [path for path in bench.run.rglob("*") if path.is_file()]
    assert bench.run / "notebooks" / "02_second.ipynb" in files
    for path in files:
        assert token.encode() not in path.read_bytes() and kaggle.encode() not in path.read_bytes(), path


@pytest.mark.soak
def test_braces_and_spaces_in_a_path(bench):
    bench.run = bench.folder / "a {run} of %s mine"
    status, output = bench.go()
    assert status == 0, output
    assert (bench.run / "third" / "report.txt").is_file()


@pytest.mark.soak
def test_a_reader_that_goes_away_ends_nothing(bench):
    line = " ".join(f"'{word}'" for word in command(bench.profile, "--run-dir", bench.run))
    subprocess.run(f"{line} | head -1", shell=True, env=environment(bench.notebooks), check=True, capture_output=True)
    wait_for(lambda: bench.status("third") == "done")


@pytest.mark.soak
def test_papermill_alone_runs_a_notebook_from_any_folder(bench, tmp_path):
    program = [sys.executable, "-m", "papermill"]
    profile = tmp_path / "p.yaml"
    profile.write_text(f"run_dir: {bench.run}\nlearning_rate: 1e-5\n")
    for name in ("01_first", "02_second"):
        line = [*program, str(bench.notebooks / f"{name}.ipynb"), str(tmp_path / "out.ipynb"), "-f", str(profile)]
        done = subprocess.run(line, env=environment(bench.notebooks), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert bench.status("second") == "done"
    assert (bench.run / "second/final/model.txt").read_text() == "model of rate 1e-05"
    status, output = bench.go("-p", "learning_rate=1e-5")
    assert status == 0 and "02_second.ipynb" not in output
