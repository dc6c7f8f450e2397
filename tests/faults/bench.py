"""Real pipelines on one run folder: what is done to them, how they end, and that the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from nbutils.core.files import read_json
from nbutils.pipeline.supervise import marked, run_mark
from tests.conftest import ROOT
from tests.train.runs import wait_for

PATIENCE = 240  # seconds; what is waited for comes sooner, the rest is for a busy machine
SECRETS = {"HF_TOKEN": "hf_" + "Q7" * 17, "KAGGLE_KEY": "0123456789abcdef" * 2}

Harm = Callable[["Bench", subprocess.Popen[str]], None]


class Bench:
    """A run folder whose name is no easy one, and pipelines on it whose environment holds secrets."""

    def __init__(self, folder: Path, program: tuple[str, ...], profile: str, stages: str, **environment: str):
        self.run = folder / "a {run} of %s mine"
        file = folder / "profile.yaml"
        file.write_text(profile)
        self.line = [sys.executable, *program, "run", str(file), "--run-dir", str(self.run), stages]
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | SECRETS | environment

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        with suppress(OSError):
            (self.run / "at-work").unlink()
        return subprocess.Popen(
            [*self.line, *arguments], env=self.environment | environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, cwd="/", start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )  # fmt: skip

    def under_way(self):
        """Waits until a cell has begun that does not end by itself."""
        wait_for((self.run / "at-work").exists)

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Exit status and output; no process of the run may be left, and no secret is said."""
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        wait_for(lambda: not marked(run_mark(self.run)), 30)
        assert not any(secret in output for secret in SECRETS.values())
        return process.returncode, output

    def go(self, *arguments: str, **environment: str) -> tuple[int, str]:
        return self.finish(self.start(*arguments, **environment))

    def suffers(self, harm: Harm, status: int, told: str, *arguments: str) -> str:
        """What a pipeline says to which this happens: its status and sentence are these."""
        process = self.start(*arguments)
        harm(self, process)
        found, output = self.finish(process)
        assert found == status and told in output and "Traceback" not in output, output
        assert not (self.run / "pause-requested").exists()
        if status == 1:  # the cell is marked, none behind it was reached, and the last words say where to look
            notebook = sorted((self.run / "notebooks").iterdir())[-1]
            cells = [cell["metadata"].get("papermill", {}) for cell in read_json(notebook)["cells"]]
            marks = [cell["status"] for cell in cells if cell]
            assert "completed" not in marks[marks.index("failed") + 1 :]
            assert output.endswith(f"What ran so far is in {notebook}.\n")
        return output

    def goes_on(self, *arguments: str) -> str:
        """What the same command without a fault says, which goes to the end."""
        status, output = self.go(*arguments)
        assert status == 0, output
        assert {read_json(record)["status"] for record in self.run.glob("*/stage.json")} == {"done"}
        return output


def nothing(bench, process):
    """The notebook itself does wrong."""


def signals(*numbers: int) -> Harm:
    """Signals to the pipeline while its stage is at work."""

    def send(bench, process):
        bench.under_way()
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.5)

    return send


def to_one(number: int, words: str, **environment: str) -> Harm:
    """A signal to the one process whose command and environment hold these."""

    def send(bench, process):
        bench.under_way()
        (found,) = [
            p for p in marked(run_mark(bench.run))
            if words in " ".join(p.cmdline()) and environment.items() <= p.environ().items()
        ]  # fmt: skip
        found.send_signal(number)

    return send


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own, with these options of tmpfs."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small or read-only disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
