"""What the image brings and what it lacks: a table, and an installation that replaces nothing it does not have to.

Kaggle's image brings torch built for its driver, and transformers and numpy that its other packages fit. pip is
therefore given a constraints file made from what is installed at this moment.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from nbutils.core.errors import UserError
from nbutils.core.stages import maker

KEPT = ("torch", "transformers", "numpy")
"""Never replaced: too old or too new means another image."""
CONSTRAINED = ("torch==", "torchvision==", "torchaudio==", "triton==", "transformers==", "numpy==", "nvidia-", "cuda-")
"""How the lines of a constraints file begin that hold even where the others cannot."""
NEWEST = {"torch": "3", "transformers": "6", "numpy": "3"}
"""Major versions that nothing here was tried with."""
NOT_THERE = ("jupyterlab",)
"""Needed where people work, not where a notebook is executed."""
ONLY_FOR = {
    "lm-eval": (maker("rows").name, maker("scores").name, "all"),
    "prompt-toolkit": (),
    "papermill": ("all",),
    "nbclient": ("all",),
    "nbformat": ("all",),
    "ipykernel": ("all",),  # that of the image runs this notebook already
}
"""Requirements that only some notebooks have."""
WHEELS = "wheels.json"
"""Marks a folder of wheels that `python -m nbutils kaggle wheels` made."""


@dataclass(frozen=True)
class Package:
    """A requirement and what was found: `version` is None where nothing is installed."""

    requirement: Requirement
    version: str | None

    @property
    def fits(self) -> bool:
        """Whether what is installed satisfies the requirement."""
        return self.version is not None and self.requirement.specifier.contains(self.version, prereleases=True)


def needed(lines: Iterable[str], stage: str) -> list[Requirement]:
    """The requirements of a notebook, out of those of the whole project."""
    found = []
    for line in lines:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name not in NOT_THERE and stage in ONLY_FOR.get(name, (stage,)):
            found.append(requirement)
    return found


def inspect(requirements: Iterable[Requirement]) -> list[Package]:
    """What is installed of the requirements. UserError where the image is too old or too new for us."""
    packages = [Package(requirement, installed_version(requirement.name)) for requirement in requirements]
    for package in packages:
        name = canonicalize_name(package.requirement.name)
        if name in KEPT and package.version is not None:
            _check_kept(package, NEWEST[name])
    return packages


def installed_version(name: str) -> str | None:
    """The installed version of a distribution, None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def constraints(everything: Mapping[str, str], replaced: Iterable[str]) -> list[str]:
    """`name==version` of everything that is installed, except what has to be replaced."""
    left_out = {canonicalize_name(name) for name in replaced}
    return sorted(f"{name}=={version}" for name, version in everything.items() if name not in left_out)


def live_versions() -> dict[str, str]:
    """Name → version of everything that is installed at this moment."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        if name := canonicalize_name(distribution.metadata["Name"] or ""):
            found.setdefault(name, distribution.version)  # the first on the path is the one that is imported
    return found


def install(
    packages: Sequence[Package], everything: Mapping[str, str], internet: bool, wheels: Sequence[Path]
) -> list[Package]:
    """Installs what does not fit yet, and returns the packages as they are then. UserError says what pip could not do.

    `everything` are the versions of all that is there (`live_versions`), which stay as far as they can.
    """
    lacking = [package for package in packages if not package.fits]
    if not lacking:
        return list(packages)
    names = ", ".join(str(package.requirement) for package in lacking)
    limits = constraints(everything, (package.requirement.name for package in lacking))
    offline = [] if internet else ["--no-index"]
    links = [word for path in wheels for word in ("--find-links", str(path))]
    options = [*offline, *links, *(str(package.requirement) for package in lacking)]
    done = _pip(limits, options)
    if done.returncode:  # a newcomer may need a newer helper than the image has; what counts is kept all the same
        done = _pip([line for line in limits if line.startswith(CONSTRAINED)], options)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")][:2]
        old = f" (for Python {sys.version_info.major}.{sys.version_info.minor})"
        advice = "" if internet else f"collect the wheels again with `python -m nbutils kaggle wheels`{old}, or "
        raise UserError(
            f"pip cannot install {names} beside what the image brings ({' '.join(last) or 'see its log'}): {advice}"
            "choose the newest environment in the notebook's options (Environment: Always use latest)."
        )
    importlib.invalidate_caches()
    return [Package(package.requirement, installed_version(package.requirement.name)) for package in packages]


def _pip(limits: Sequence[str], options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "constraints.txt"
        path.write_text("\n".join(limits) + "\n")
        command = [sys.executable, "-m", "pip", "install", "-q", "-c", str(path), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)


def table(before: Sequence[Package], after: Sequence[Package], everything: Mapping[str, str]) -> str:
    """What was found and what was installed, a line each for what is kept and for what was changed.

    `everything` are the versions of all that was there before: helpers that the new packages brought or raised are
    listed too.
    """
    rows = [("package", "needed", "found", "installed")]
    for old, new in zip(before, after, strict=True):
        if old.version != new.version or canonicalize_name(old.requirement.name) in (*KEPT, "trl", "datasets"):
            changed = new.version if new.version != old.version else ""
            requirement = old.requirement
            rows.append((requirement.name, str(requirement.specifier), old.version or "nothing", changed or "kept"))
    own = {canonicalize_name(package.requirement.name) for package in before}
    for name, version in sorted(live_versions().items()):
        if name not in own and everything.get(name) != version:
            rows.append((name, "a helper", everything.get(name, "nothing"), version))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _check_kept(package: Package, newest: str) -> None:
    name, version = package.requirement.name, package.version or ""
    if not package.fits:
        raise UserError(
            f"The image's {name} is {version}, and smallchat needs {package.requirement.specifier}: choose the newest "
            "environment in the notebook's options (Environment: Always use latest), then save a new version."
        )
    if Version(version) >= Version(newest):
        raise UserError(
            f"The image's {name} is {version}, and smallchat was never tried with {newest} or newer: update smallchat, "
            "or pin the environment of an earlier version in the notebook's options."
        )
