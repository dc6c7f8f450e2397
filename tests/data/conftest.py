"""Keeps progress bars out of the tests' output, and batches small."""

import os

import pytest

from nbutils.data import lines, sources

os.environ.setdefault("TQDM_DISABLE", "1")


@pytest.fixture
def small_batches(monkeypatch):
    """Few rows to a batch: a small file has several."""
    for module in (lines, sources):
        monkeypatch.setattr(module, "BATCH_ROWS", 3)
