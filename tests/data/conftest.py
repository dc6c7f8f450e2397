"""Keeps progress bars out of the tests' output."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")
