"""What earlier sessions and notebooks left below `/kaggle/input`: found by its records, checked, copied to work on.

A notebook's output is mounted as `input/<slug>/…`, on newer images as `input/notebooks/<owner>/<slug>/…`; so its place
says nothing, and a run folder is known by its `run.json`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, read_jsonl
from nbutils.core.record import CHECKPOINTS, RECORD, NewerRecordError, read_record, stage_record, write_record
from nbutils.train.checkpoints import MANIFEST, damage, newest_first
from nbutils.train.records import METRICS

PARTS = ("parameters", "code", "modules", "upstream")
NEEDED = {"status", "started", "outputs", "parts"}
"""What every record of a stage has."""
DEPTH = 8
"""Folders below `input/` that are looked into; a run lies at the fifth level or higher."""


@dataclass(frozen=True)
class Earlier:
    """A stage as an earlier session left it. `step` and `checkpoint` are those of its newest valid checkpoint.

    `fits`: it was made with the parameters, the code and from the files that are asked for.
    """

    folder: Path
    record: dict[str, Any]
    step: int = 0
    checkpoint: Path | None = None
    fits: bool = True

    @property
    def done(self) -> bool:
        """Whether the stage was finished there."""
        return bool(self.record["status"] == "done")

    @property
    def date(self) -> str:
        """When its session began, in UTC, to the minute."""
        return datetime.fromisoformat(self.record["started"]).strftime("%Y-%m-%d %H:%M UTC")

    @property
    def session(self) -> int:
        """The number of the training session that wrote it."""
        path = self.folder / METRICS
        rows = read_jsonl(path) if path.is_file() else []
        return max((row["session"] for row in rows if row.get("kind") == "session"), default=1)


def run_folders(root: Path, name: str) -> list[Path]:
    """Every run folder of that name below `root`."""
    return [folder for folder in runs_below(root) if _name(folder) == name]


def best(runs: Sequence[Path], stage: str, asked: dict[str, Any] | None) -> tuple[Earlier | None, list[str]]:
    """The copy of a stage to go on from: one that fits, finished, with the highest valid step, the youngest.

    `asked` are the parts of a cache key; None takes any. Of copies that do not fit, those of the same parameters come
    first, then those of the same code. Damaged records and checkpoints are passed over, with a remark each.
    NewerRecordError where a newer smallchat has written one: that work is not to be begun anew.
    """
    found, remarks = [], list[str]()
    for run in runs:
        earlier, said = _read(run, stage)
        found += [earlier] if earlier else []
        remarks += said
    chosen = max(found, key=lambda e: (_fit(e, asked), e.done, e.step, e.record["started"]), default=None)
    return chosen and replace(chosen, fits=all(_fit(chosen, asked))), remarks


def bring(earlier: Earlier, target: Path, with_checkpoint: bool) -> None:
    """Copies a stage's folder; of its checkpoints at most the chosen one. Times of change stay, modes do not.

    Its record is the one that was found to hold: a finished stage that lacks a file is not finished in the copy.
    """
    for source in sorted(_files(earlier, with_checkpoint)):
        copy = target / source.relative_to(earlier.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)  # not its mode: below input/ everything is read-only
        stat = source.stat()
        os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    write_record(target / RECORD, earlier.record)


def size(earlier: Earlier, with_checkpoint: bool) -> int:
    """Bytes that `bring` would copy."""
    return sum(path.stat().st_size for path in _files(earlier, with_checkpoint))


def runs_below(root: Path) -> Iterator[Path]:
    """Every folder below `root` that has a `run.json`, in order of names."""
    for place, names, files in os.walk(root):
        folder = Path(place)
        if "run.json" in files:
            names.clear()
            yield folder
        elif len(folder.relative_to(root).parts) >= DEPTH:
            names.clear()
        names.sort()


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a training stage's folder."""
    return next((path for path in newest_first(folder / CHECKPOINTS) if damage(path) is None), None)


def _name(folder: Path) -> str:
    """The run's name as its record gives it; the folder's where the record cannot be read."""
    try:
        return str((read_record(folder / "run.json") or {}).get("name", folder.name))
    except UserError:
        return folder.name


def _read(run: Path, stage: str) -> tuple[Earlier | None, list[str]]:
    """A stage of a run folder as far as it is whole, and what is to be said of the rest."""
    folder, remarks = run / stage, list[str]()
    try:
        record = stage_record(run, stage)
        if record is not None and not record.keys() >= NEEDED:
            raise UserError(f"{folder / RECORD} is no record of a stage.")
    except NewerRecordError:
        raise
    except UserError:  # cut short by the session's end: it can't be known what the work belongs to
        return None, [f"{folder / RECORD} is damaged, and what lies beside it is passed over"]
    if record is None:
        return None, remarks
    lost = [name for name, entry in record["outputs"].items() if not _whole(folder / name, entry["bytes"])]
    lost = [name for name in lost if not name.startswith(f"{CHECKPOINTS}/")]
    record |= {"outputs": {name: entry for name, entry in record["outputs"].items() if name not in lost}}
    if record["status"] == "done":
        if not lost:
            return Earlier(folder, record), remarks
        remarks.append(f"{folder} lacks {lost[0]}, or it is cut short: it is not taken as finished")
        record |= {"status": "running"}
    for checkpoint in newest_first(folder / CHECKPOINTS):
        problem = damage(checkpoint)
        if problem is None:
            step = int(read_json(checkpoint / MANIFEST)["step"])
            return Earlier(folder, record, step, checkpoint), remarks
        remarks.append(f"{checkpoint} {problem} and is passed over")
    return Earlier(folder, record), remarks


def _fit(earlier: Earlier, asked: dict[str, Any] | None) -> tuple[bool, bool, bool]:
    """Whether parameters, code, and the files that were read are those that are asked for, so far as they are."""
    parts, asked = earlier.record["parts"], asked or {}
    same = {name: name not in asked or parts.get(name) == asked[name] for name in PARTS}
    return same["parameters"], same["code"] and same["modules"], same["upstream"]


def _whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _files(earlier: Earlier, with_checkpoint: bool) -> Iterator[Path]:
    for path in earlier.folder.rglob("*"):
        inside = path.relative_to(earlier.folder).parts
        if not path.is_file() or any(part.endswith(".partial") for part in inside):
            continue
        if inside[0] == CHECKPOINTS:
            chosen = earlier.checkpoint if with_checkpoint else None
            if chosen is None or not path.is_relative_to(chosen):
                continue
        yield path
