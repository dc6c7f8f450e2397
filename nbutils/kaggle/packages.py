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
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nbutils.core.errors import UserError
from nbutils.core.files import PLACE
from nbutils.core.stages import maker, stages

WHOLE = "all"
"""Stands in place of a stage for the bundle that runs the whole pipeline."""
SWEEP = "sweep"
"""The same for the bundle of notebook 07."""
PROJECT = "*project.toml"
"""Beside the package: what smallchat needs. An archive's has a name of its own: its folder is no project root."""

CONSTRAINED = ("torch==", "torchvision==", "torchaudio==", "triton==", "transformers==", "numpy==", "nvidia-", "cuda-")
"""How the lines of a constraints file begin that hold even where the others cannot."""
NEWEST = {"torch": "3", "transformers": "6", "numpy": "3"}
"""Never replaced: too old or too new means another image. The first versions that nothing here was tried with."""
ONLY_FOR = {
    "lm-eval": (maker("rows").name, maker("scores").name, WHOLE, SWEEP),
    "scipy": (SWEEP,),
    "jupyterlab": (),  # where people work
    "prompt-toolkit": (),
    "papermill": (WHOLE, SWEEP),
    "nbclient": (WHOLE, SWEEP),
    "nbformat": (WHOLE, SWEEP),
    "ipykernel": (WHOLE, SWEEP),  # that of the image runs this notebook already
}
"""Requirements that only some notebooks have."""
BROUGHT = (
    *("torch", "torchvision", "torchaudio", "triton", "transformers", "tokenizers", "numpy"),
    *("scipy", "scikit-learn", "pandas", "setuptools"),
)
"""Heavy, and surely in the image, or never replaced there: neither they nor what only they need is collected."""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""The version that runs this."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def requirements() -> list[str]:
    """What smallchat needs at run time."""
    return list(tomllib.loads(next(PLACE.glob(PROJECT)).read_text(encoding="utf-8"))["project"]["dependencies"])


def needed(stage: str) -> dict[str, Requirement]:
    """The requirements of a notebook, out of those of the whole project, by their names as indexes write them."""
    found = {canonicalize_name(each.name): each for each in map(Requirement, requirements())}
    return {n: each for n, each in found.items() if stage in ONLY_FOR.get(n, (stage,))}


def lacking(needed: Mapping[str, Requirement]) -> list[Requirement]:
    """The requirements that nothing installed satisfies. UserError where the image is too old or too new for us."""
    found = live_versions()
    for name, newest in NEWEST.items():
        if name in needed and name in found:
            allowed = needed[name].specifier & f"<{newest}"
            if not allowed.contains(found[name], prereleases=True):
                raise UserError(
                    f"The image's {name} is {found[name]}, and smallchat needs {allowed}: choose the newest "
                    "environment in the notebook's options (Environment: Always use latest), then save a new version; "
                    "or where it is too new, update smallchat, or pin the environment of an earlier version there."
                )
    return [
        requirement
        for name, requirement in needed.items()
        if not (name in found and requirement.specifier.contains(found[name], prereleases=True))
    ]


def live_versions() -> dict[str, str]:
    """Name → version of everything that is installed at this moment."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        if name := canonicalize_name(distribution.metadata["Name"] or ""):
            found.setdefault(name, distribution.version)  # the first on the path is the one that is imported
    return found


def install(
    needed: Mapping[str, Requirement], lacking: Sequence[Requirement], internet: bool, wheels: Sequence[Path]
) -> str:
    """Installs what is lacking; a table of what is kept and what was changed, helpers of the new included.

    What else is there stays as far as it can. UserError says what pip could not do.
    """
    before = live_versions()
    if lacking:
        replaced = [canonicalize_name(requirement.name) for requirement in lacking]
        limits = sorted(f"{name}=={version}" for name, version in before.items() if name not in replaced)
        names = [str(requirement) for requirement in lacking]
        options = [*([] if internet else ["--no-index"]), *(f"--find-links={path}" for path in wheels), *names]
        # A newcomer may need a newer helper than the image has; what counts is kept all the same.
        for kept in (limits, [line for line in limits if line.startswith(CONSTRAINED)]):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "constraints.txt"
                path.write_text("\n".join(kept) + "\n")
                done = _pip("install", "-c", str(path), *options)
            if not done.returncode:
                break
        else:
            last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")][:2]
            raise UserError(
                f"pip cannot install {', '.join(names)} beside what the image brings "
                f"({' '.join(last) or 'see its log'}): choose the newest environment in the notebook's options "
                "(Environment: Always use latest), or, without internet, collect the wheels again "
                f"(`kaggle wheels --python {PYTHON}`)."
            )
        importlib.invalidate_caches()
    now = live_versions()
    rows = [("package", "needed", "found", "installed")]
    for name in [*needed, *sorted(now.keys() - needed.keys())]:
        old, new = before.get(name, "nothing"), now.get(name, "nothing")
        if old != new or name in needed.keys() & {*NEWEST, "trl", "datasets"}:
            why = str(needed[name].specifier) if name in needed else "a helper"
            rows.append((name, why, old, new if new != old else "kept"))
    return "\n".join(f"{name:24}  {why:12}  {old:12}  {new}" for name, why, old, new in rows)


def _pip(action: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", action, "-q", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# ---- on a machine with a network


def required() -> list[str]:
    """What smallchat's notebooks need on Kaggle, whichever of them; without what is never replaced there."""
    notebooks = [*(stage.name for stage in stages()), WHOLE]
    return sorted({name for notebook in notebooks for name in needed(notebook)} - set(NEWEST))


def collect_wheels(folder: Path, python: str, names: Iterable[str]) -> list[Path]:
    """Downloads wheels of what an image may lack or have too old, for that version of Python, as installed here.

    What the `names` need comes too. A package without wheels on the index is built, which works for pure Python.
    UserError where pip can't.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [f"{name}=={version}" for name, version in sorted(closure(names).items())]
    target = [f"--python-version={python}", *(f"--platform={platform}" for platform in PLATFORMS)]
    done = _pip("download", "--no-deps", "--prefer-binary", *target, "-d", str(folder), *wanted)
    for source in [*folder.glob("*.tar.gz"), *folder.glob("*.zip")]:
        done = done if done.returncode else _pip("wheel", "--no-deps", "-w", str(folder), str(source))
        source.unlink()
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"pip cannot collect the wheels for Python {python} ({last}): check the network.")
    return sorted(folder.glob("*.whl"))


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
