"""Checkpoints that are whole or not there: a temporary folder, a manifest of hashes, one rename."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, sha256_of_file, shown, write_json

SCHEMA = 1
MANIFEST = "manifest.json"
PARTIAL = ".partial"


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


def newest_valid(folder: Path, identity: dict[str, Any]) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of the same identity (result settings and data), and remarks on those passed over.

    UserError where a whole checkpoint was made by other settings or data, naming the difference.
    """
    remarks = []
    for checkpoint in newest_first(folder):
        problem = damage(checkpoint)
        if problem is not None:
            remarks.append(f"{checkpoint.name} {problem} and is passed over")
            continue
        differences = list(_differences(read_json(checkpoint / MANIFEST)["identity"], identity))
        if differences:
            raise UserError(
                f"{shown(checkpoint)} was made with other settings or data ({'; '.join(differences)}); set them back, "
                f"or move {shown(folder)} away to start anew."
            )
        return checkpoint, remarks
    return None, remarks


def prune(folder: Path, kept: int) -> None:
    """Removes all but the newest `kept` checkpoints, and temporary folders that a killed process left."""
    for checkpoint in list(newest_first(folder))[kept:]:
        shutil.rmtree(checkpoint)


def clear_partial(folder: Path) -> None:
    """Removes temporary folders that a killed process left."""
    if folder.is_dir():
        for partial in folder.glob(f"*{PARTIAL}"):
            shutil.rmtree(partial)


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
