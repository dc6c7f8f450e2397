"""A Kaggle on this machine: its folders, an environment of its own, and papermill without parameters."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import time
import venv
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from nbutils.cli import main
from nbutils.core.files import KAGGLE, sha256_of_file
from tests.conftest import ROOT

SMALL = ROOT / "tests" / "kaggle" / "small.yaml"
"""The profile that is bundled here."""
DATA = "someone/smallchat-small-01-filter-data"
EXECUTED = "__notebook__.ipynb"
FLAT, NESTED = "{slug}", "notebooks/{owner}/{slug}"
"""Where a notebook's output is mounted below `input/`: on older and on newer images."""


def image(folder: Path, *brought: Path) -> Path:
    """A virtual environment with what this one has, but without smallchat; returns its interpreter.

    `brought` are folders of packages to have instead, the first of several versions counting.
    """
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    # A folder that a .pth file names is searched, but its own .pth files (the editable smallchat) are not read.
    places = brought or (Path(sysconfig.get_paths()["purelib"]),)
    (packages_of(folder) / "image.pth").write_text("".join(f"{place}\n" for place in places))
    return folder / "bin" / "python"


def packages_of(environment: Path) -> Path:
    """Where a virtual environment has its packages."""
    return Path(sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})["purelib"])


def without(folder: Path, *names: str) -> Path:
    """The packages of this environment, linked into a folder, but for the named ones."""
    folder.mkdir()
    for place in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not any(re.match(rf"{name}(-[\d.]+\.dist-info)?$", place.name) for name in names):
            (folder / place.name).symlink_to(place)
    return folder


@dataclass
class Outcome:
    """How a session ended: its exit status, its executed notebook's text, and its output."""

    status: int
    text: str
    working: Path


def done(outcome: Outcome) -> Outcome:
    """The outcome of a session that completed."""
    assert outcome.status == 0, outcome.text[-3000:]
    return outcome


class Kaggle:
    """One account's notebooks: each session gets an empty `working/` and a read-only `input/`."""

    def __init__(self, folder: Path, python: Path, layout: str = FLAT) -> None:
        self.folder = folder
        self.python = python
        self.layout = layout
        self._number = 0

    def run(
        self,
        bundle: Path,
        inputs: dict[str, Path] | None = None,
        during: Callable[[subprocess.Popen[str], Path], None] | None = None,
        **environment: str,
    ) -> Outcome:
        """Executes a bundle as a saved version; `inputs` are outputs by `owner/slug`; `during` may interfere."""
        self._number += 1
        root = self.folder / f"session-{self._number}" / "kaggle"
        working = root / "working"
        working.mkdir(parents=True)
        (root / "input").mkdir()
        for address, output in (inputs or {}).items():
            owner, slug = address.split("/")
            shutil.copytree(output, root / "input" / self.layout.format(owner=owner, slug=slug))
        for path in (root / "input", *root.glob("input/**/*")):
            path.chmod(path.stat().st_mode & ~0o222)
        attached = _hashes(root / "input")
        executed = working / EXECUTED
        source = next(bundle.glob("*.ipynb"))
        command = [self.python, "-m", "papermill", source, executed, "-k", "python3", "--no-progress-bar"]
        with subprocess.Popen(
            command,
            cwd=working,
            env=self._environment(root) | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            if during:
                during(process, working)
            said, _ = process.communicate(timeout=400)
        assert _hashes(root / "input") == attached, "the session has changed its inputs"
        return Outcome(process.returncode, text_of(executed) + said, working)

    def _environment(self, root: Path) -> dict[str, str]:
        ours = ("PYTHON", "NBUTILS", "JUPYTER")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        home = root.parent / "home"
        home.mkdir()
        return kept | {
            KAGGLE: str(root),
            "HOME": str(home),
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "OMP_NUM_THREADS": "1",
            "HF_ENDPOINT": "http://127.0.0.1:9",  # nobody listens: found out within the two seconds
        }


def kill_session(process: subprocess.Popen[str], working: Path) -> None:
    """Ends a session as Kaggle does: everything that belongs to it at once, without a word."""
    mark = f"{KAGGLE}={working.parent}".encode()
    os.killpg(process.pid, signal.SIGKILL)
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                os.kill(int(path.parent.name), signal.SIGKILL)


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str], seconds: float = 200) -> None:
    """Waits until a file of that pattern is there, while the session runs."""
    deadline = time.monotonic() + seconds
    while not any(path.glob(pattern)):
        assert time.monotonic() < deadline and process.poll() is None, f"no {pattern} below {path}"
        time.sleep(0.1)


def kill_worker(process: subprocess.Popen[str]) -> None:
    """Ends one rank of a session's training."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):
            line = child.cmdline()
            if "nbutils.train.worker" in line and "nbutils.core.torchrun" not in line:
                child.kill()
                return
    raise AssertionError("no worker is there")


def _hashes(folder: Path) -> dict[str, str]:
    """Every file below a folder: modes alone keep nobody from writing who is root, as tests in containers are."""
    return {str(path): sha256_of_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def text_of(notebook: Path) -> str:
    """What the cells of an executed notebook print and show."""
    if not notebook.is_file():
        return ""
    cells = json.loads(notebook.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts = [output.get("text", output.get("data", {}).get("text/plain", [])) for output in outputs]
    return "".join("".join(text) for text in texts)


def bundles(profile: Path, out: Path, *options: str) -> dict[str, Path]:
    """Bundles a profile with the command line, and returns the folders by the ends of their names."""
    with redirect_stdout(io.StringIO()):
        assert main(["kaggle", "bundle", str(profile), "--out", str(out), "--owner", "someone", *options]) == 0
    return bundles_in(out)


def bundles_in(out: Path) -> dict[str, Path]:
    """The bundles in a folder by the ends of their names."""
    return {path.name.split("-", 2)[2]: path for path in sorted(out.iterdir())}
