"""Whether anybody is looking on."""

from __future__ import annotations

import os

from nbutils.core.pause import PIPELINE


def interactive() -> bool:
    """Whether a person may be looking on: a Jupyter kernel, and no pipeline above it."""
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel") and PIPELINE not in os.environ
