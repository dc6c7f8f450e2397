"""A folder of models and datasets that `python -m nbutils fetch` collected, for machines without internet."""

from __future__ import annotations

import os
from pathlib import Path

from nbutils.core.errors import UserError
from nbutils.core.files import Json, kaggle_root, project_root, read_json, shown

MANIFEST = "fetched.json"
SCHEMA = 1
VARIABLE = "NBUTILS_FETCHED"
"""Environment variable that names the folder where it is not `fetched/` at the project root."""


def folders() -> list[Path]:
    """Where such a folder may be: NBUTILS_FETCHED, `fetched/` at the project root, anywhere below Kaggle's inputs."""
    given = os.environ.get(VARIABLE)
    found = [Path(given).expanduser()] if given else [project_root() / "fetched"]
    attached = kaggle_root() / "input"
    if attached.is_dir():
        found += sorted(path.parent for path in attached.glob(f"**/{MANIFEST}"))
    return [folder for folder in found if (folder / MANIFEST).is_file()]


def entry(kind: str, name: str, revision: str = "") -> tuple[Path, Json] | None:
    """Folder and manifest entry of a collected `model` or `dataset`; None where it was not collected.

    `revision` is the one asked for, or the commit that it was found to be; '' takes any. UserError where no copy is
    complete.
    """
    damaged: Path | None = None
    for folder in folders():
        for item in manifest(folder)["items"]:
            if (item["kind"], item["name"]) == (kind, name) and revision in ("", item["revision"], item["commit"]):
                copy = folder / item["folder"]
                # Hashing gigabytes at every start would cost minutes (`fetch --check` does it).
                sizes = {copy / file: facts["bytes"] for file, facts in item["files"].items()}
                if all(file.is_file() and file.stat().st_size == size for file, size in sizes.items()):
                    return copy, item
                damaged = copy
    if damaged:
        raise UserError(
            f"The fetched copy of {name} in {shown(damaged)} is damaged, files are missing or cut short: run `python "
            "-m nbutils fetch` again where there is a network, and copy the whole folder."
        )
    return None


def local_copy(kind: str, name: str, revision: str = "") -> Path | None:
    """The folder of a collected `model` or `dataset`; None where it was not collected (see `entry`)."""
    found = entry(kind, name, revision)
    return found[0] if found else None


def manifest(folder: Path) -> Json:
    """What a fetched folder holds. UserError for one that is damaged."""
    try:
        found = dict(read_json(folder / MANIFEST))
        found["items"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{shown(folder / MANIFEST)} is damaged, or not smallchat's ({type(error).__name__}: {error}): run `python "
            "-m nbutils fetch` again where there is a network, and copy the whole folder."
        ) from None
    return found
