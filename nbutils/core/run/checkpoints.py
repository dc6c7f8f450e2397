"""Checkpoints that are whole or not there: a temporary folder, a manifest of hashes, one rename."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import Json, files_below, read_json, sha256_of_file, shown, write_json
from nbutils.core.run.state import Kind, differences, in_short

SCHEMA = 1
STEP = "step-"
PARTIAL = ".partial"
MANIFEST = "manifest.json"
BEST = "best"
"""The weights of the best evaluation so far: in the folder of checkpoints for now, in each checkpoint for good."""


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of one optimizer step, there or not."""

    path: Path

    @classmethod
    def at(cls, folder: Path, step: int) -> Checkpoint:
        """The checkpoint of an optimizer step in a folder of checkpoints."""
        return cls(folder / f"{STEP}{step:06d}")

    @property
    def name(self) -> str:
        """`step-000500`."""
        return self.path.name

    @property
    def step(self) -> int:
        """The optimizer step after which it was written."""
        return int(self.path.name.removeprefix(STEP))

    @property
    def partial(self) -> Path:
        """The temporary folder in which it is written."""
        return self.path.with_suffix(PARTIAL)

    @property
    def sealed(self) -> bool:
        """Whether it was written to its end; `damage` looks at every file."""
        return (self.path / MANIFEST).is_file()

    @cached_property
    def manifest(self) -> Json:
        """Identity, world size, and every file with its hash."""
        return dict(read_json(self.path / MANIFEST))

    def fact(self, name: str) -> Any:
        """A fact that `seal` was given; None where there is none, or the manifest cannot be read."""
        try:
            return self.manifest.get(name)
        except (OSError, ValueError):
            return None

    def seal(self, identity: Json, facts: Json) -> None:
        """Turns the temporary folder into the checkpoint: flush, manifest with sha256 of every file, rename.

        Of the facts `open` names parameters that may differ when it is continued; one that is `pinned` is never pruned.
        """
        files = {}
        for file in files_below(self.partial):
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
            files[str(file.relative_to(self.partial))] = {"sha256": sha256_of_file(file), "bytes": file.stat().st_size}
        write_json(self.partial / MANIFEST, {"schema": SCHEMA, "identity": identity, "files": files} | facts)
        if self.path.exists():
            shutil.rmtree(self.path)
        self.partial.rename(self.path)

    def damage(self) -> str | None:
        """What is wrong with it, in words; None for a valid one. UserError for one of a newer schema."""
        if not self.sealed:
            return "has no manifest"
        try:
            files = self.manifest["files"]
        except (ValueError, KeyError, TypeError):
            return "has a manifest that cannot be read"
        if self.manifest.get("schema", 0) > SCHEMA:
            raise UserError(f"{shown(self.path)} was written by a newer smallchat; update smallchat.")
        for name, entry in files.items():
            file = self.path / name
            if not file.is_file():
                return f"lacks {name}"
            if sha256_of_file(file) != entry["sha256"]:
                return f"has a changed {name} ({file.stat().st_size} of {entry['bytes']} bytes)"
        return None

    def set_aside(self) -> None:
        """Renames a damaged one as half written: under its own name it would be counted among those that are kept."""
        self.path.rename(self.path.with_name(f"damaged-{self.name}{PARTIAL}"))


def in_folder(folder: Path) -> list[Checkpoint]:
    """The finished checkpoints of a folder, the newest first."""
    return [Checkpoint(path) for path in sorted(folder.glob(f"{STEP}*"), reverse=True) if path.suffix != PARTIAL]


def newest_whole(folder: Path) -> tuple[Checkpoint | None, dict[Checkpoint, str]]:
    """The newest valid checkpoint of a folder, and what is wrong with newer ones."""
    damaged: dict[Checkpoint, str] = {}
    for checkpoint in in_folder(folder):
        problem = checkpoint.damage()
        if problem is None:
            return checkpoint, damaged
        damaged[checkpoint] = problem
    return None, damaged


def check_identity(checkpoint: Checkpoint, identity: Json) -> None:
    """UserError where a checkpoint was made by other settings or from other data, naming what differs."""
    free = {f"parameters.{name}" for name in checkpoint.fact("open") or ()}
    found = differences(Kind.PARAMETER, checkpoint.manifest["identity"], identity)
    if changes := [change for change in found if change.name not in free]:
        raise UserError(
            f"{shown(checkpoint.path)} was made with other settings or data ({in_short(changes)}); set them back, "
            f"or move {shown(checkpoint.path.parent)} away to start again."
        )


def prune(folder: Path, kept: int) -> None:
    """Removes all but the pinned and the newest `kept` checkpoints of a folder, and half-written ones."""
    others = [checkpoint.path for checkpoint in in_folder(folder) if not checkpoint.fact("pinned")]
    for path in [*others[kept:], *half_written(folder)]:
        shutil.rmtree(path)


def half_written(folder: Path) -> list[Path]:
    """Temporary folders that a killed process left, and damaged checkpoints that were set aside."""
    return list(folder.glob(f"*{PARTIAL}"))
