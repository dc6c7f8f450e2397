"""A place like `/kaggle`; bundles; an account, images like Kaggle's and wheels for all soak tests of it."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import KAGGLE, sha256_of_file
from nbutils.kaggle import packages
from tests.conftest import ROOT, Make, filled, missing
from tests.kaggle.simulated import PACKAGES, Kaggle, bundles, image, packages_of


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Stands in for `/kaggle`, and is where packages can be added to those of this environment; nothing is there."""
    monkeypatch.setenv(KAGGLE, str(tmp_path))
    for name in ("input", "working"):
        (tmp_path / name).mkdir()
    for name in ("PYTHONPATH", "HF_HUB_OFFLINE", "NBUTILS_STARTED"):  # which the first cell sets
        monkeypatch.setenv(name, "")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def bundled(made_once) -> Callable[[Path], Path]:
    """The folder of a profile's bundles, made once for all tests, which leave it as it is."""
    return lambda profile: made_once(f"bundles-{profile.stem}", lambda out: bundles(profile, out))


# For soak tests


@pytest.fixture(scope="session")
def account(tmp_path_factory) -> Kaggle:
    """On an image with today's packages."""
    folder = tmp_path_factory.mktemp("kaggle")
    return Kaggle(folder, image(folder / "image"))


def made_once_here(name: str, make: Make) -> Path:
    """A folder that is made once on this machine, for these packages."""
    folder = ROOT / "runs" / ".cache" / f"{name}-{sha256_of_file(ROOT / 'requirements.lock')[:12]}"
    return filled(folder, folder.with_suffix(".complete"), make)


OLDEST = ("transformers==5.0.*", "ipython==7.34.0", "ipykernel==6.17.1", "nbclient==0.5.13", "plotly==5.24.1")
"""As in Kaggle's image (installed_cpu_packages.txt of Kaggle/docker-python), with the oldest transformers admitted."""


@pytest.fixture(scope="session")
def old_packages() -> Path:
    """The libraries of Kaggle's image, and what those need; tests that install into an image make their own."""

    def make(folder):
        command = [image(folder), "-m", "pip", "install", "-q", *OLDEST]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            missing(f"{', '.join(OLDEST)} cannot be installed: {ran.stderr.strip().splitlines()[-1]}")

    return packages_of(made_once_here("oldest", make))


@pytest.fixture
def oldest(old_packages, tmp_path) -> Path:
    """The interpreter of an image with those libraries."""
    return image(tmp_path / "oldest", old_packages, PACKAGES)


@pytest.fixture
def bare(old_packages, tmp_path) -> Path:
    """The interpreter of the same image without what Kaggle's lacks altogether."""
    there = tmp_path / "packages"
    there.mkdir()
    for place in PACKAGES.iterdir():
        if not re.match(r"(trl|lm_eval|chitchat_dataset)(-[\d.]+\.dist-info)?$", place.name):
            (there / place.name).symlink_to(place)
    return image(tmp_path / "image", old_packages, there)


@pytest.fixture(scope="session")
def wheels() -> Path:
    """What those images lack or have too old, and what that needs, to be attached. Skips where there is no index."""

    def make(folder):
        names = ("plotly", "ipykernel", "nbclient", "trl", "lm-eval", "chitchat-dataset")
        try:
            packages.collect_wheels(folder, packages.PYTHON, names)
        except UserError as error:
            missing(str(error))

    return made_once_here("wheels", make)
