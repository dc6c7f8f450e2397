"""Where a run comes from: library versions, git commit, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from nbutils import __version__
from nbutils.core.files import project_root

LIBRARIES = ("torch", "transformers", "trl", "datasets", "accelerate", "tokenizers", "lm_eval", "papermill", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python, smallchat and the libraries that results depend on."""
    found = {"python": platform.python_version(), "smallchat": __version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """The commit of the clone, with `+changes` behind it where the work tree differs, or that of a Kaggle bundle.

    None outside both.
    """
    bundled = Path(__file__).resolve().parents[2] / "commit.txt"
    if bundled.is_file():
        return bundled.read_text(encoding="utf-8") or None
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> dict[str, Any]:
    """Processor, cores, memory and platform; accelerators are reported by the processes that use them."""
    import psutil

    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(project_root()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
