"""A Kaggle on this machine: its folders, an environment of its own, and papermill without parameters."""

import os
import shutil
import subprocess
import sysconfig
import tempfile
import venv
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from nbutils.cli import main
from nbutils.core.files import KAGGLE, sha256_of_file
from nbutils.core.run.layout import Run
from tests.conftest import ROOT

SMALL = ROOT / "tests" / "kaggle" / "small.yaml"
"""The profile that is bundled here."""
PACKAGES = Path(sysconfig.get_paths()["purelib"])
"""Of this environment."""


def image(folder: Path, *brought: Path) -> Path:
    """A virtual environment with what this one has, but without smallchat; returns its interpreter.

    `brought` are folders of packages to have instead, the first of several versions counting.
    """
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    # A folder that a .pth file names is searched, but its own .pth files (the editable smallchat) are not read.
    places = "\n".join(map(str, brought or (PACKAGES,)))
    (packages_of(folder) / "image.pth").write_text(places)
    return folder / "bin" / "python"


def packages_of(environment: Path) -> Path:
    """Where a virtual environment has its packages."""
    return next(environment.glob("lib/python*/site-packages"))


@dataclass
class Outcome:
    """Of a session: its output, the run folder of SMALL in it, and what its cells and papermill said."""

    working: Path
    run: Run
    text: str


Session = subprocess.Popen[str]


@dataclass
class Kaggle:
    """An account: each session gets an empty `working/`, and an `input/` that it has to leave as it is."""

    folder: Path
    python: Path

    def run(
        self,
        bundle: Path,
        inputs: dict[str, Path],
        during=lambda process, run: None,
        **environment: str,
    ) -> Outcome:
        """Executes a bundle as a saved version; `inputs` are outputs by `owner/slug`; `during` may interfere.

        It has to complete, unless `during` kills it.
        """
        home = Path(tempfile.mkdtemp(dir=self.folder))
        working, attached, log = home / "working", home / "input", home / "log"
        for folder in (working, attached):
            folder.mkdir()
        for address, output in inputs.items():
            shutil.copytree(output, attached / "notebooks" / address)
        before, run = _hashes(attached), Run(working / "runs" / "small")
        ours = ("PYTHON", "NBUTILS", "JUPYTER")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        kept |= {KAGGLE: str(home), "HOME": str(home), "KAGGLE_KERNEL_RUN_TYPE": "Batch", "OMP_NUM_THREADS": "1",
                 "HF_ENDPOINT": "http://127.0.0.1:9"}  # fmt: skip  # nobody listens: found out within the two seconds
        command = [self.python, "-m", "papermill", next(bundle.glob("*.ipynb")), "executed.ipynb", "-k", "python3",
                   "--no-progress-bar", "--log-output"]  # fmt: skip
        with (
            log.open("w") as said,
            Session(command, cwd=working, env=kept | environment, stdout=said, stderr=said) as process,
        ):
            during(process, run)
            process.wait(400)
        text = log.read_text()
        assert process.returncode <= 0, text[-3000:]
        assert _hashes(attached) == before, "the session has changed its inputs"
        return Outcome(working, run, text)


def kill_session(process: Session):
    """Ends a session as Kaggle does: everything that belongs to it at once, without a word."""
    session = psutil.Process(process.pid)
    for each in [*session.children(recursive=True), session]:
        with suppress(psutil.Error):
            each.kill()


def kill_worker(process: Session):
    """Ends one rank of a session's training."""
    children = psutil.Process(process.pid).children(recursive=True)
    next(child for child in children if "LOCAL_RANK" in child.environ()).kill()


def _hashes(folder):
    """Every file below a folder: modes keep nobody from writing who is root, as tests in containers are."""
    return {path: sha256_of_file(path) for path in folder.rglob("*") if path.is_file()}


def bundles(profile: Path, out: Path, *options: str) -> list[Path]:
    """Bundles a profile with the command line; the folders in order, that of the whole pipeline last."""
    assert main(["kaggle", "bundle", str(profile), "--out", str(out), "--owner", "someone", *options]) == 0
    return sorted(out.iterdir())
