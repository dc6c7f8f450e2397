"""Whether anybody is looking on, and what they need not see."""

from __future__ import annotations

import os

from nbutils.core.pause import PIPELINE


def interactive() -> bool:
    """Whether a person may be looking on: a Jupyter kernel, and no pipeline above it."""
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel") and PIPELINE not in os.environ


def quiet() -> None:
    """Keeps the libraries' progress bars for loading and saving out of notebooks, where they would stay for good."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
