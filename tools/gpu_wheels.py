"""Collects the wheels with which `make gpu WHEELS=DIR` runs on a machine that has torch and no network.

    python3 tools/gpu_wheels.py DIR --python 3.12      on a machine with a network

That machine's own are torch, transformers, accelerate, tokenizers, pyarrow, pandas, scipy, scikit-learn, matplotlib,
psutil, pytest, jinja2 and what they need; of the rest, what the tests import comes in the lock's versions.
"""

import argparse
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
NEEDED = [
    "annotated-types",
    "charset-normalizer",
    "chitchat-dataset",
    "datasets",
    "dill",
    "hypothesis",
    "ipython",
    "lm_eval",
    "multiprocess",
    "pydantic",
    "pydantic_core",
    "pytest-timeout",
    "requests",
    "sortedcontainers",
    "traitlets",
    "trl",
    "typing-inspection",
    "urllib3",
    "xxhash",
]
PLATFORMS = [f"--platform=manylinux{kind}_x86_64" for kind in ("_2_28", "_2_27", "_2_17", "2014", "1")]
MOST_MIB = 50
"""What a machine is given without complaint."""


def main(folder: Path, python: str) -> None:
    """Downloads them; the exit status is 1 where one cannot be had, or where they are too large together."""
    pins = {line.partition("==")[0]: line for line in LOCK.read_text().splitlines()}
    wanted = [pins[name] for name in NEEDED]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    download = [sys.executable, "-m", "pip", "download", *options, *PLATFORMS, "--dest", folder, *wanted]
    if subprocess.run(download).returncode:
        sys.exit(f"A wheel for Python {python} cannot be had: see pip's words above.")
    wheels = list(folder.glob("*.whl"))
    mib = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{len(wheels)} wheels, {mib:.1f} MiB, in {folder}")
    if mib > MOST_MIB:
        sys.exit(f"{folder} holds more than {MOST_MIB} MiB: remove what is in it and no longer needed.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the wheels are put")
    parser.add_argument("--python", default="3.12", help="the version there, such as 3.12")
    given = parser.parse_args()
    main(given.folder, given.python)
