"""`python -m nbutils kaggle wheels`: the packages to attach for sessions without internet."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nbutils.core.errors import UserError
from nbutils.core.files import sha256_of_file, write_json
from nbutils.core.stages import stages
from nbutils.kaggle.archive import requirements
from nbutils.kaggle.environment import WHOLE
from nbutils.kaggle.packages import KEPT, WHEELS, needed

BROUGHT = (
    *("torch", "torchvision", "torchaudio", "triton", "transformers", "tokenizers", "numpy"),
    *("scipy", "scikit-learn", "pandas", "setuptools"),
)
"""Heavy, and surely in the image, or never replaced there: neither they nor what only they need is collected."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def required() -> list[str]:
    """What smallchat's notebooks need on Kaggle, whichever of them; without what is never replaced there."""
    notebooks = [*(stage.name for stage in stages()), WHOLE]
    names = {canonicalize_name(found.name) for name in notebooks for found in needed(requirements(), name)}
    return sorted(names - set(KEPT))


def collect_wheels(folder: Path, python: str, names: Iterable[str] | None = None) -> list[Path]:
    """Downloads wheels of what an image may lack or have too old, for that version of Python, as installed here.

    `names` are `required` where not given; what they need comes too. A package without wheels on the index is built,
    which works for pure Python. UserError where pip can't.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pinned = [f"{name}=={version}" for name, version in sorted(closure(required() if names is None else names).items())]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    download = ["download", "--only-binary=:all:", "--python-version", python, *platforms, "-d", str(folder)]
    at_once = _pip([*download, *pinned]).returncode == 0
    for wanted in [] if at_once else pinned:
        build = ["wheel", "-w", str(folder), wanted]
        if _pip([*download, wanted]).returncode and (built := _pip(build)).returncode:
            last = (built.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"There is no wheel of {wanted} for Python {python} ({last}): check the network.")
    wheels = sorted(folder.glob("*.whl"))
    entries = {path.name: sha256_of_file(path) for path in wheels}
    write_json(folder / WHEELS, {"schema": 1, "python": python, "wheels": entries})
    return wheels


def closure(names: Iterable[str]) -> dict[str, str]:
    """Installed name → version of the packages and all that they need, without BROUGHT."""
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
