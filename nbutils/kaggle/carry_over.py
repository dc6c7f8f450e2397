"""What earlier sessions and notebooks left below `/kaggle/input`: found by its records, checked, copied, continued.

A notebook's output is mounted as `input/<slug>/…`, on newer images as `input/notebooks/<owner>/<slug>/…`; so its place
says nothing, and a run folder is known by its `run.json`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import read_jsonl
from nbutils.core.notebooks import notebook_path, parameters
from nbutils.core.run.checkpoints import Checkpoint, newest_whole
from nbutils.core.run.decide import Action, Policy, StageState, carry_out, decide, inspect
from nbutils.core.run.key import CODE, MODULES, PARAMETERS, UPSTREAM
from nbutils.core.run.layout import CHECKPOINTS, Run
from nbutils.core.run.record import RECORD, RUN_RECORD, NewerRecordError, versions, write_record
from nbutils.core.run.state import State, in_short
from nbutils.core.settings import Settings
from nbutils.core.stages import spec, stages
from nbutils.core.text import duration
from nbutils.core.training_log import LOG

ACCEPT, FORCE = "accept", "force"
"""What a bundle can say about stale work: keep it, or start again."""
NEEDED = {"status", "started", "outputs", "parts"}
"""What every record of a stage has."""
DEPTH = 8
"""Folders below `input/` that are looked into; a run lies at the fifth level or higher."""


@dataclass(frozen=True)
class Earlier:
    """A stage as an earlier session left it. `checkpoint` is its newest valid one.

    `fits`: it was made with the parameters, the code and from the files that are asked for.
    """

    folder: Path
    record: dict[str, Any]
    checkpoint: Checkpoint | None = None
    fits: bool = True

    @property
    def done(self) -> bool:
        """Whether the stage was finished there."""
        return bool(self.record["status"] == State.DONE)

    @property
    def step(self) -> int:
        """The step of its newest valid checkpoint; 0 without one."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def date(self) -> str:
        """When its session began, in UTC, to the minute."""
        return datetime.fromisoformat(self.record["started"]).strftime("%Y-%m-%d %H:%M UTC")

    @property
    def session(self) -> int:
        """The number of the training session that wrote it."""
        path = self.folder / LOG
        rows = read_jsonl(path) if path.is_file() else []
        return max((row["session"] for row in rows if row.get("kind") == "session"), default=1)


def run_folders(root: Path, name: str) -> list[Path]:
    """Every run folder of that name below `root`."""
    return [folder for folder in runs_below(root) if Run(folder).name == name]


def best(runs: Sequence[Path], stage: str, asked: dict[str, Any] | None) -> tuple[Earlier | None, list[str]]:
    """The copy of a stage to go on from: one that fits, finished, with the highest valid step, the youngest.

    `asked` are the parts of a cache key; None takes any. Of copies that do not fit, those of the same parameters come
    first, then those of the same code. Damaged records and checkpoints are passed over, with a remark each.
    NewerRecordError where a newer smallchat has written one: that work is not to be started again.
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
    """Every folder below `root` that has a record of a run, in order of names."""
    for place, names, files in os.walk(root):
        folder = Path(place)
        if RUN_RECORD in files:
            names.clear()
            yield folder
        elif len(folder.relative_to(root).parts) >= DEPTH:
            names.clear()
        names.sort()


def _read(run: Path, stage: str) -> tuple[Earlier | None, list[str]]:
    """A stage of a run folder as far as it is whole, and what is to be said of the rest."""
    folder, remarks = run / stage, list[str]()
    try:
        record = Run(run).record(stage)
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
    if record["status"] == State.DONE:
        if not lost:
            return Earlier(folder, record), remarks
        remarks.append(f"{folder} lacks {lost[0]}, or it is cut short: it is not taken as finished")
        record |= {"status": State.RUNNING}
    checkpoint, damaged = newest_whole(folder / CHECKPOINTS)
    remarks += [f"{each.path} {problem} and is passed over" for each, problem in damaged.items()]
    return Earlier(folder, record, checkpoint), remarks


def _fit(earlier: Earlier, asked: dict[str, Any] | None) -> tuple[bool, bool, bool]:
    """Whether parameters, code, and the files that were read are those that are asked for, so far as they are."""
    parts, asked = earlier.record["parts"], asked or {}
    same = {name: name not in asked or parts.get(name) == asked[name] for name in (PARAMETERS, CODE, MODULES, UPSTREAM)}
    return same[PARAMETERS], same[CODE] and same[MODULES], same[UPSTREAM]


def _whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _files(earlier: Earlier, with_checkpoint: bool) -> Iterator[Path]:
    for path in earlier.folder.rglob("*"):
        inside = path.relative_to(earlier.folder).parts
        if not path.is_file() or any(part.endswith(".partial") for part in inside):
            continue
        if inside[0] == CHECKPOINTS:
            chosen = earlier.checkpoint if with_checkpoint else None
            if chosen is None or not path.is_relative_to(chosen.path):
                continue
        yield path


def settings_of(name: str, names: Mapping[str, Any]) -> Settings:
    """A stage's settings out of a notebook's names; what the notebook does not name has the stage's own default."""
    defaults = {n: p.default for n, p in parameters(notebook_path(spec(name))).items()}
    kind = spec(name).settings_class()
    return kind.checked({n: names.get(n, value) for n, value in defaults.items() if n in kind.model_fields})


def given_parameters(names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The names among a notebook's that are parameters of some stage."""
    known = {name for stage in stages() for name in parameters(notebook_path(stage))}
    for name in sorted(known):
        if name in names:
            yield name, names[name]


def is_done(name: str, names: Mapping[str, Any]) -> bool:
    """Whether a stage is finished, with these settings, this code and what it reads as it lies here."""
    return inspect(spec(name), settings_of(name, names)).fits


def changed_versions(record: Mapping[str, Any]) -> Iterator[str]:
    """A line for each library that the image brings in another version than the session before had."""
    now = versions()
    for name, before in record.get("versions", {}).items():
        if now.get(name) != before and name != "smallchat":
            yield f"Since then {name} has changed from {before} to {now.get(name)}; that is recorded, the run goes on."


def continues(earlier: Earlier, name: str, settings: Settings, stale: str, in_pipeline: bool) -> bool:
    """Whether the copy of a stage in the run folder is continued; one that is not is removed again.

    `stale` is ACCEPT, FORCE or '' for work that is stale. In a pipeline an earlier stage that runs again may make it
    fit again. UserError for long or unfinished work about which the bundle says nothing: nobody can be asked here.
    """
    state = inspect(spec(name), settings)
    judged = state.lasting if in_pipeline else state
    decision = decide(judged, Policy(accept=stale == ACCEPT, force=stale == FORCE))
    if decision.action is Action.ASK:
        raise _question(earlier, state)
    if decision.accepts or decision.action is Action.REFUSE:
        carry_out(decision, state)
        print(f"{name}: kept as it is, as --accept asks, though changed: {in_short(state.changes)}.")
    elif decision.clears:
        shutil.rmtree(settings.run_path / name)
        print(f"{name}: starts again, for what {earlier.folder} holds is stale ({in_short(state.changes)}).")
    return not decision.clears


def _question(earlier: Earlier, state: StageState) -> UserError:
    where = f"step {earlier.step}" if earlier.step else duration(state.seconds)
    keep = "" if state.blocking else "with --accept to keep it, "
    return UserError(
        f"The {state.spec.name} stage that is attached ({earlier.folder}, {where}) is stale "
        f"({in_short(state.changes)}), and nothing has been run: bundle again {keep}with --force to start again (what "
        "is attached stays as it is), or with another run_dir, and push that."
    )
