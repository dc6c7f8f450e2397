"""What a notebook shows of itself: whether anybody looks on, what they need not see, and how something is done."""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Callable
from typing import Any

from IPython import get_ipython
from IPython.display import Markdown, display

from nbutils.core.run.pause import PIPELINE


def interactive() -> bool:
    """Whether a person may be looking on: a Jupyter kernel, and no pipeline above it."""
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel") and PIPELINE not in os.environ


def quiet() -> None:
    """Keeps the libraries' progress bars for loading and saving out of notebooks, where they would stay for good."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def show_source(function: Callable[..., Any]) -> None:
    """Shows the real source of a function below the cell: how it is done, not only that it is."""
    source = textwrap.dedent(inspect.getsource(function)).strip()
    display(Markdown(f"`{function.__module__}`:\n\n```python\n{source}\n```"))
