from __future__ import annotations

from pathlib import Path

import pytest

from tests.chat.models import made_up_run


@pytest.fixture(scope="session")
def finished(made_once) -> Path:
    """A run with a trained model; tests leave it as it is."""
    return made_once("a run to talk to", made_up_run)
