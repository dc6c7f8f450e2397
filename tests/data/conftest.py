"""Keeps progress bars out of the tests' output."""

from __future__ import annotations

import os

os.environ.setdefault("TQDM_DISABLE", "1")
