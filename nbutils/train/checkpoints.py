"""Checkpoints that are whole or not there: a temporary folder, a manifest of hashes, one rename."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, sha256_of_file, shown, write_json

SCHEMA = 1
MANIFEST = "manifest.json"
PARTIAL = ".partial"
DAMAGED = "damaged-"
"""Stands before the name of a checkpoint that a resumed run passed over, so that it counts as none."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies."""
    return folder / f"step-{step:06d}"


def seal(partial: Path, final: Path, identity: dict[str, Any], facts: dict[str, Any]) -> None:
    """Turns a written temporary folder into a checkpoint: flush, manifest with sha256 of every file, rename."""
    files = {}
    for file in sorted(p for p in partial.rglob("*") if p.is_file()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        files[str(file.relative_to(partial))] = {"sha256": sha256_of_file(file), "bytes": file.stat().st_size}
    write_json(partial / MANIFEST, {"schema": SCHEMA, "identity": identity, "files": files} | facts)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)


def newest_first(folder: Path) -> Iterator[Path]:
    """Finished checkpoint folders, the newest step first."""
    if folder.is_dir():
        yield from sorted((p for p in folder.glob("step-*") if p.suffix != PARTIAL), reverse=True)


def newest_model(stage: Path) -> Path:
    """Folder of a training stage's newest model: the final one, else the newest checkpoint's, else the base's."""
    for folder in (stage / "final", *newest_first(stage / "checkpoints")):
        if (folder / "config.json").is_file():
            return folder
    return stage / "base"


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None for a valid one. UserError for one of a newer schema."""
    path = checkpoint / MANIFEST
    if not path.is_file():
        return "has no manifest"
    try:
        manifest = read_json(path)
        files = manifest["files"]
    except (ValueError, KeyError, TypeError):
        return "has a manifest that cannot be read"
    if manifest.get("schema", 0) > SCHEMA:
        raise UserError(f"{shown(checkpoint)} was written by a newer smallchat; update smallchat.")
    for name, entry in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"lacks {name}"
        if file.stat().st_size != entry["bytes"]:
            return f"has {file.stat().st_size} of {entry['bytes']} bytes of {name}"
        if sha256_of_file(file) != entry["sha256"]:
            return f"has a changed {name}"
    return None


def newest_valid(folder: Path, identity: dict[str, Any]) -> tuple[Path | None, dict[Path, str]]:
    """The newest whole checkpoint of the same identity (result settings and data), and what is wrong with newer ones.

    UserError where a whole checkpoint was made by other settings or data, naming the difference.
    """
    passed_over = {}
    for checkpoint in newest_first(folder):
        problem = damage(checkpoint)
        if problem is not None:
            passed_over[checkpoint] = problem
            continue
        differences = list(_differences(read_json(checkpoint / MANIFEST)["identity"], identity))
        if differences:
            raise UserError(
                f"{shown(checkpoint)} was made with other settings or data ({'; '.join(differences)}); set them back, "
                f"or move {shown(folder)} away to start anew."
            )
        return checkpoint, passed_over
    return None, passed_over


def set_aside(damaged: Iterable[Path]) -> None:
    """Renames damaged checkpoints: under their own names they would be counted among those that are kept.

    They stay until the next whole checkpoint is written.
    """
    for checkpoint in damaged:
        aside = checkpoint.with_name(DAMAGED + checkpoint.name)
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)


def prune(folder: Path, kept: int) -> None:
    """Removes all but the newest `kept` checkpoints, and damaged ones that were set aside."""
    for checkpoint in [*list(newest_first(folder))[kept:], *folder.glob(f"{DAMAGED}*")]:
        shutil.rmtree(checkpoint)


def clear_partial(folder: Path) -> None:
    """Removes temporary folders that a killed process left."""
    if folder.is_dir():
        for partial in folder.glob(f"*{PARTIAL}"):
            shutil.rmtree(partial)


def make_room(folder: Path, needed: int) -> str | None:
    """As `room_for`; where room is short, damaged checkpoints that were set aside make way."""
    problem = room_for(folder, needed)
    if problem and list(folder.glob(f"{DAMAGED}*")):
        for checkpoint in folder.glob(f"{DAMAGED}*"):
            shutil.rmtree(checkpoint)
        problem = room_for(folder, needed)
    return problem


def room_for(folder: Path, needed: int) -> str | None:
    """None if `needed` bytes fit on the disk of `folder` with a tenth to spare, else what is missing, in words."""
    free = shutil.disk_usage(folder).free
    if free >= needed * 1.1:
        return None
    return (
        f"the disk of {shown(folder)} has {free / 2**20:,.0f} MiB free, a checkpoint needs {needed * 1.1 / 2**20:,.0f}"
    )


def disk_is_full(folder: Path, error: Exception) -> str | None:
    """Words for a write that failed because the disk is full; None where it failed for another reason."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return f"the disk of {shown(folder.parent)} became full while it was written"
    # torch's writer of archives names neither the cause nor its number.
    if "PytorchStreamWriter failed" in str(error) or "unexpected pos" in str(error):
        return f"writing to {shown(folder.parent)} failed, as on a full disk"
    return None


def _differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name in sorted(set(before) | set(after)):
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict) and name != "trainer_options":
            yield from _differences(old, new, f"{name}.")
        elif old != new:
            yield f"{prefix}{name} was {old!r}, is {new!r}"
