"""A place like `/kaggle`; an account, an image like Kaggle's and an undisturbed training for all soak tests of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nbutils.core.files import KAGGLE
from nbutils.kaggle import packages
from tests.conftest import missing
from tests.kaggle.attachments import fetched_folder, wheel_folder
from tests.kaggle.simulated import (
    DATA,
    EXECUTED,
    SMALL,
    Kaggle,
    Outcome,
    bundles,
    bundles_in,
    done,
    image,
    packages_of,
    text_of,
    without,
)

NEEDED = packages.requirements()


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Stands in for `/kaggle`, on an image with no packages but those of this environment; nothing is there."""
    monkeypatch.setenv(KAGGLE, str(tmp_path))
    for name in ("input", "working"):
        (tmp_path / name).mkdir()
    for name in ("PYTHONPATH", "HF_HUB_OFFLINE", "NBUTILS_STARTED"):  # which the first cell sets
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(packages, "FOLDER", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "pyproject.toml").write_text(f"project.dependencies = {NEEDED}")
    return tmp_path


OLDEST = ("transformers==5.0.*", "ipython==7.34.0", "ipykernel==6.17.1", "nbclient==0.5.13", "plotly==5.24.1")
"""As in Kaggle's image (installed_cpu_packages.txt of Kaggle/docker-python), with the oldest transformers admitted."""


@pytest.fixture(scope="session")
def account(tmp_path_factory) -> Kaggle:
    """Of this worker: each session of an account has a number."""
    folder = tmp_path_factory.mktemp("kaggle")
    return Kaggle(folder, image(folder / "image"))


@pytest.fixture(scope="session")
def oldest(made_once) -> Path:
    """The interpreter of an image with the libraries of Kaggle's, and what those need."""

    def make(folder: Path) -> None:
        command = [image(folder), "-m", "pip", "install", "-q", *OLDEST]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            missing(f"{', '.join(OLDEST)} cannot be installed: {ran.stderr.strip().splitlines()[-1]}")

    return made_once("oldest", make) / "bin" / "python"


@pytest.fixture(scope="session")
def bare(oldest, made_once) -> Path:
    """The interpreter of the same image without what Kaggle's lacks altogether."""

    def make(folder: Path) -> None:
        folder.mkdir()
        lacking = without(folder / "packages", "trl", "lm_eval", "chitchat_dataset")
        image(folder / "image", packages_of(oldest.parents[1]), lacking)

    return made_once("bare", make) / "image" / "bin" / "python"


@pytest.fixture(scope="session")
def wheels(made_once) -> Path:
    """What those images lack or have too old, to be attached."""
    names = ("plotly", "ipykernel", "nbclient", "trl", "lm-eval", "chitchat-dataset")
    return made_once("wheels", lambda folder: wheel_folder(folder, *names))


@pytest.fixture(scope="session")
def fetched(made_once) -> Path:
    """A base model and conversations, to be attached."""
    return made_once("fetched", fetched_folder)


@pytest.fixture(scope="session")
def unhurried(made_once) -> dict[str, Path]:
    """Bundles whose training never pauses."""
    return bundles_in(made_once("unhurried", lambda folder: bundles(SMALL, folder, "-p", "budget_minutes=0")))


@pytest.fixture(scope="session")
def data(account, unhurried, made_once) -> Path:
    """The output of the first notebook."""
    return made_once("data", lambda folder: done(account.run(unhurried["01-filter-data"])).working.rename(folder))


@pytest.fixture(scope="session")
def undisturbed(account, unhurried, data, made_once) -> Outcome:
    """A training in one session."""
    bundle = unhurried["02-train-sft"]
    working = made_once("one-session", lambda folder: done(account.run(bundle, {DATA: data})).working.rename(folder))
    return Outcome(0, text_of(working / EXECUTED), working)
