"""Sessions without internet: what has to be attached instead, listed all at once; and the wheels to attach."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nbutils.core.errors import UserError
from nbutils.core.fetched import local_copy
from nbutils.core.files import sha256_of_file, write_json
from nbutils.kaggle.packages import WHEELS
from nbutils.pipeline.fetch import wanted_by

NEWCOMERS = ("trl", "datasets", "chitchat-dataset", "lm-eval", "gguf", "papermill")
"""What Kaggle's image lacks or has too old; what they need comes too, except what the image surely has."""
BROUGHT = (
    *("accelerate", "jinja2", "joblib", "numpy", "packaging", "pandas", "protobuf", "pydantic", "pyyaml", "requests"),
    *("safetensors", "scikit-learn", "scipy", "sentencepiece", "setuptools", "tokenizers", "torch", "tqdm"),
    *("transformers", "typing-extensions", "huggingface-hub", "nltk", "regex", "ipykernel", "nbclient", "nbformat"),
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def check_attached(settings: Mapping[str, Any], profile: str) -> None:
    """UserError that lists everything the stages take from the hub and nobody has attached, with how to add it."""
    lacking = [
        f"{item.purpose} {item.name}"
        for item in wanted_by(dict(settings))
        if local_copy(item.kind, item.name, item.revision) is None
    ]
    if lacking:
        raise UserError(
            f"There is no internet here, and not attached are: {', '.join(lacking)}. Switch Internet on in the "
            f"session's options, or run `python -m nbutils fetch params/{profile}.yaml --out fetched` where there is "
            "a network, upload that folder as a Kaggle dataset, and attach it (Add Input, or bundle with --attach "
            "OWNER/DATASET)."
        )


def collect_wheels(folder: Path, python: str, names: Iterable[str] = NEWCOMERS) -> list[Path]:
    """Downloads wheels of what the image lacks for that version of Python, in the versions installed here.

    A package without wheels on the index is built, which works for pure Python. UserError where pip can't.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, version in sorted(closure(names).items()):
        wanted = f"{name}=={version}"
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        download = [
            "download",
            "--only-binary=:all:",
            "--python-version",
            python,
            *platforms,
            "-d",
            str(folder),
            wanted,
        ]
        build = ["wheel", "-w", str(folder), wanted]
        if _pip(download).returncode and (built := _pip(build)).returncode:
            last = (built.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"There is no wheel of {wanted} for Python {python} ({last}): check the network.")
    wheels = sorted(folder.glob("*.whl"))
    entries = {path.name: sha256_of_file(path) for path in wheels}
    write_json(folder / WHEELS, {"schema": 1, "python": python, "wheels": entries})
    return wheels


def closure(names: Iterable[str]) -> dict[str, str]:
    """Installed name → version of the packages and all that they need, without what the image brings."""
    waiting, found = list(names), dict[str, str]()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found or name in BROUGHT:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # needed on another system only
        found[name] = distribution.version
        waiting += _needs(distribution)
    return found


def _needs(distribution: metadata.Distribution) -> Iterator[str]:
    for line in distribution.requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def _pip(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", arguments[0], "-q", "--no-deps", *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, check=False)
