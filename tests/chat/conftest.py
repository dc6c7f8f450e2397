from pathlib import Path

import pytest

from tests.evaluate.runs import made_up_run


@pytest.fixture(scope="session")
def finished(made_once) -> Path:
    """A run with two models that can be talked to; tests leave it as it is."""
    return made_once("evaluate", made_up_run)
