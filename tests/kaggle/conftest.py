"""One simulated account, one image as Kaggle's is, and one undisturbed training for all soak tests of Kaggle."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.kaggle.attachments import fetched_folder, wheel_folder
from tests.kaggle.simulated import DATA, SMALL, Kaggle, Outcome, bundles, done, image, packages_of, without

OLDEST = ("transformers==5.0.*", "ipython==7.34.0", "ipykernel==6.17.1", "nbclient==0.5.13", "plotly==5.24.1")
"""As in Kaggle's image (installed_cpu_packages.txt of Kaggle/docker-python), with the oldest transformers admitted."""


@pytest.fixture(scope="session")
def account(tmp_path_factory) -> Kaggle:
    folder = tmp_path_factory.mktemp("kaggle")
    return Kaggle(folder, image(folder / "image"))


@pytest.fixture(scope="session")
def oldest(tmp_path_factory) -> Path:
    """The interpreter of an image with the libraries of Kaggle's, and what those need."""
    python = image(tmp_path_factory.mktemp("oldest"))
    ran = subprocess.run([python, "-m", "pip", "install", "-q", *OLDEST], capture_output=True, text=True, check=False)
    if ran.returncode:
        missing(f"{', '.join(OLDEST)} cannot be installed: {ran.stderr.strip().splitlines()[-1]}")
    return python


@pytest.fixture(scope="session")
def bare(oldest, tmp_path_factory) -> Path:
    """The interpreter of the same image without what Kaggle's lacks altogether."""
    folder = tmp_path_factory.mktemp("bare")
    lacking = without(folder / "packages", "trl", "lm_eval", "chitchat_dataset")
    return image(folder / "image", packages_of(oldest.parents[1]), lacking)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory) -> Path:
    """What those images lack or have too old, to be attached."""
    names = ("plotly", "ipykernel", "nbclient", "trl", "lm-eval", "chitchat-dataset")
    return wheel_folder(tmp_path_factory.mktemp("attached") / "wheels", *names)


@pytest.fixture(scope="session")
def fetched(tmp_path_factory) -> Path:
    """A base model and conversations, to be attached."""
    return fetched_folder(tmp_path_factory.mktemp("attached") / "fetched")


@pytest.fixture(scope="session")
def unhurried(tmp_path_factory) -> dict[str, Path]:
    """Bundles whose training never pauses."""
    return bundles(SMALL, tmp_path_factory.mktemp("unhurried"), "-p", "budget_minutes=0")


@pytest.fixture(scope="session")
def data(account, unhurried) -> Path:
    """The output of the first notebook."""
    return done(account.run(unhurried["01-filter-data"])).working


@pytest.fixture(scope="session")
def undisturbed(account, unhurried, data) -> Outcome:
    """A training in one session."""
    return done(account.run(unhurried["02-train-sft"], {DATA: data}))
