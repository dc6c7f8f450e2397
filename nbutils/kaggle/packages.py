"""The packages that smallchat needs on Kaggle: what an image brings and lacks, what is installed, what is collected.

Kaggle's image brings torch built for its driver, and transformers and numpy that its other packages fit. pip is
therefore given a constraints file made from what is installed at this moment.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from nbutils.core.errors import UserError
from nbutils.core.files import sha256_of_file, write_json
from nbutils.core.stages import maker, stages
from nbutils.kaggle.environment import WHOLE

FOLDER = Path(__file__).resolve().parents[2]
"""Where the archive was unpacked; the clone, where it is made."""
REQUIREMENTS = "requirements.txt"
"""In the archive: what smallchat needs, a requirement a line."""

CONSTRAINED = ("torch==", "torchvision==", "torchaudio==", "triton==", "transformers==", "numpy==", "nvidia-", "cuda-")
"""How the lines of a constraints file begin that hold even where the others cannot."""
NEWEST = {"torch": "3", "transformers": "6", "numpy": "3"}
"""Never replaced: too old or too new means another image. Major versions that nothing here was tried with."""
NOT_THERE = ("jupyterlab",)
"""Needed where people work, not where a notebook is executed."""
ONLY_FOR = {
    "lm-eval": (maker("rows").name, maker("scores").name, WHOLE),
    "prompt-toolkit": (),
    "papermill": (WHOLE,),
    "nbclient": (WHOLE,),
    "nbformat": (WHOLE,),
    "ipykernel": (WHOLE,),  # that of the image runs this notebook already
}
"""Requirements that only some notebooks have."""
WHEELS = "wheels.json"
"""Marks a folder of wheels that `python -m nbutils kaggle wheels` made."""


BROUGHT = (
    *("torch", "torchvision", "torchaudio", "triton", "transformers", "tokenizers", "numpy"),
    *("scipy", "scikit-learn", "pandas", "setuptools"),
)
"""Heavy, and surely in the image, or never replaced there: neither they nor what only they need is collected."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


@dataclass(frozen=True)
class Package:
    """A requirement and what was found: `version` is None where nothing is installed."""

    requirement: Requirement
    version: str | None

    @property
    def name(self) -> str:
        """As indexes write it."""
        return canonicalize_name(self.requirement.name)

    @property
    def fits(self) -> bool:
        """Whether what is installed satisfies the requirement."""
        return self.version is not None and self.requirement.specifier.contains(self.version, prereleases=True)


def requirements() -> list[str]:
    """What smallchat needs at run time, as the archive, `pyproject.toml` of the clone or the installed package says."""
    if (FOLDER / REQUIREMENTS).is_file():
        return (FOLDER / REQUIREMENTS).read_text(encoding="utf-8").splitlines()
    project = FOLDER / "pyproject.toml"
    if project.is_file():
        return list(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"])
    return [line for line in metadata.requires("smallchat") or [] if "extra ==" not in line]


def needed(stage: str) -> list[Requirement]:
    """The requirements of a notebook, out of those of the whole project."""
    found = {canonicalize_name(each.name): each for each in map(Requirement, requirements())}
    return [each for name, each in found.items() if name not in NOT_THERE and stage in ONLY_FOR.get(name, (stage,))]


def inspect(requirements: Iterable[Requirement]) -> list[Package]:
    """What is installed of the requirements. UserError where the image is too old or too new for us."""
    found = live_versions()
    packages = [Package(each, found.get(canonicalize_name(each.name))) for each in requirements]
    for package in packages:
        if package.name not in NEWEST or package.version is None:
            continue
        name, version, newest = package.name, package.version, NEWEST[package.name]
        if not package.fits:
            raise UserError(
                f"The image's {name} is {version}, and smallchat needs {package.requirement.specifier}: choose "
                "the newest environment in the notebook's options (Environment: Always use latest), then save a new "
                "version."
            )
        if Version(version) >= Version(newest):
            raise UserError(
                f"The image's {name} is {version}, and smallchat was never tried with {newest} or newer: update "
                "smallchat, or pin the environment of an earlier version in the notebook's options."
            )
    return packages


def live_versions() -> dict[str, str]:
    """Name → version of everything that is installed at this moment."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        if name := canonicalize_name(distribution.metadata["Name"] or ""):
            found.setdefault(name, distribution.version)  # the first on the path is the one that is imported
    return found


def install(packages: Sequence[Package], internet: bool, wheels: Sequence[Path]) -> str:
    """Installs what does not fit yet; a table of what is kept and what was changed, helpers of the new included.

    What else is there stays as far as it can. UserError says what pip could not do.
    """
    before = live_versions()
    lacking = [package for package in packages if not package.fits]
    if lacking:
        _install_all(lacking, before, internet, wheels)
        importlib.invalidate_caches()
    now = live_versions()
    rows = [("package", "needed", "found", "installed")]
    for package in packages:
        old, new = package.version or "nothing", now.get(package.name, "nothing")
        if old != new or package.name in (*NEWEST, "trl", "datasets"):
            requirement = package.requirement
            rows.append((requirement.name, str(requirement.specifier), old, new if new != old else "kept"))
    own = [package.name for package in packages]
    helpers = [name for name in sorted(now) if name not in own and now[name] != before.get(name)]
    rows += [(name, "a helper", before.get(name, "nothing"), now[name]) for name in helpers]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _install_all(lacking: Sequence[Package], before: Mapping[str, str], internet: bool, wheels: Sequence[Path]) -> None:
    replaced = [package.name for package in lacking]
    limits = sorted(f"{name}=={version}" for name, version in before.items() if name not in replaced)
    names = [str(package.requirement) for package in lacking]
    links = [word for path in wheels for word in ("--find-links", str(path))]
    options = [*([] if internet else ["--no-index"]), *links, *names]
    done = _install(limits, options)
    if done.returncode:  # a newcomer may need a newer helper than the image has; what counts is kept all the same
        done = _install([line for line in limits if line.startswith(CONSTRAINED)], options)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")][:2]
        old = f" (for Python {sys.version_info.major}.{sys.version_info.minor})"
        advice = "" if internet else f"collect the wheels again with `python -m nbutils kaggle wheels`{old}, or "
        raise UserError(
            f"pip cannot install {', '.join(names)} beside what the image brings ({' '.join(last) or 'see its log'}): "
            f"{advice}choose the newest environment in the notebook's options (Environment: Always use latest)."
        )


def _install(limits: Sequence[str], options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "constraints.txt"
        path.write_text("\n".join(limits) + "\n")
        return _pip("install", "-c", str(path), *options)


def _pip(action: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", action, "-q", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# ---- on a machine with a network


def required() -> list[str]:
    """What smallchat's notebooks need on Kaggle, whichever of them; without what is never replaced there."""
    notebooks = [*(stage.name for stage in stages()), WHOLE]
    names = {canonicalize_name(each.name) for notebook in notebooks for each in needed(notebook)}
    return sorted(names - set(NEWEST))


def collect_wheels(folder: Path, python: str, names: Iterable[str] | None = None) -> list[Path]:
    """Downloads wheels of what an image may lack or have too old, for that version of Python, as installed here.

    `names` are `required` where not given; what they need comes too. A package without wheels on the index is built,
    which works for pure Python. UserError where pip can't.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pinned = [f"{name}=={version}" for name, version in sorted(closure(required() if names is None else names).items())]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    download = [
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--python-version",
        python,
        *platforms,
        "-d",
        str(folder),
    ]
    at_once = _pip(*download, *pinned).returncode == 0
    for wanted in [] if at_once else pinned:
        if _pip(*download, wanted).returncode == 0:
            continue
        built = _pip("wheel", "--no-deps", "-w", str(folder), wanted)
        if built.returncode:
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
        needs = map(Requirement, distribution.requires or [])
        waiting += [each.name for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found
