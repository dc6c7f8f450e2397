"""What tests of the data stage share."""

import pytest

from nbutils.data import lines, sources


@pytest.fixture
def small_batches(monkeypatch):
    """Few rows to a batch: a small file has several."""
    for module in (lines, sources):
        monkeypatch.setattr(module, "BATCH_ROWS", 3)
