"""Runs that the tests of evaluate share."""

import io
import shutil
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cells import run_cells
from tests.evaluate.runs import NOTEBOOK, SMALL


@pytest.fixture
def own_run(untrained, tmp_path) -> Path:
    """A made-up run that a test may change."""
    return shutil.copytree(untrained, tmp_path / "own" / "run")


@pytest.fixture(scope="module")
def run_folder(untrained, tmp_path_factory) -> Path:
    """A made-up run for tests that leave it as it is."""
    return shutil.copytree(untrained, tmp_path_factory.mktemp("evaluated") / "run")


@pytest.fixture(scope="module")
def evaluated(run_folder) -> SimpleNamespace:
    """The names of notebook 04 after it was run on `run_folder`; `stderr` is what would stay on the page."""
    given = SMALL | {"run_dir": str(run_folder), "cache_dir": str(run_folder.parent / "cache")}
    with redirect_stderr(io.StringIO()) as stderr:
        names = run_cells(NOTEBOOK, **given)
    return SimpleNamespace(**names, stderr=stderr.getvalue())
