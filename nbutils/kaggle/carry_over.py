"""What earlier sessions and notebooks left below `/kaggle/input`: found by its records, checked, copied, continued.

A notebook's output is mounted as `input/<slug>/…`, on newer images as `input/notebooks/<owner>/<slug>/…`; so its place
says nothing, and a run folder is known by its `run.json`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nbutils.core.errors import UserError
from nbutils.core.files import Json, files_below, kaggle_root
from nbutils.core.run.checkpoints import PARTIAL, Checkpoint, half_written, in_folder, newest_whole
from nbutils.core.run.decide import Action, Policy, StageState, carry_out, decide
from nbutils.core.run.key import CODE, MODULES, PARAMETERS, UPSTREAM
from nbutils.core.run.layout import CHECKPOINTS, Run
from nbutils.core.run.record import RECORD, RUN_RECORD, NewerRecordError, write_record
from nbutils.core.run.state import State, in_short
from nbutils.core.stages import maker
from nbutils.core.text import duration

ACCEPT, FORCE = "accept", "force"
"""What a bundle can say about stale work: keep it, or start again."""
NOTE = "session.json"
"""In the run folder: how the newest session of a bundle ended, for whoever waits for its output."""
LOG = "kaggle.jsonl"
"""In the run folder: a row for each session, with its kind, its GPUs, its libraries and what it continued."""
LIMIT = 20_000_000_000
"""Bytes that Kaggle keeps of `/kaggle/working` (kaggle.com/docs/notebooks, technical specifications)."""
NEEDED = {"status", "started", "outputs", "parts"}
"""What every record of a stage has."""


@dataclass(frozen=True)
class Earlier:
    """A stage as an earlier session left it. `checkpoint` is its newest valid one.

    `fit`: which parts of its cache key are those that are asked for, the weightiest first.
    """

    folder: Path
    record: Json
    fit: list[bool]
    checkpoint: Checkpoint | None = None

    @property
    def fits(self) -> bool:
        """Whether it was made with the parameters, the code and from the files that are asked for."""
        return all(self.fit)

    @property
    def done(self) -> bool:
        """Whether the stage was finished there."""
        return bool(self.record["status"] == State.DONE)

    @property
    def step(self) -> int:
        """The step of its newest valid checkpoint; 0 without one."""
        return self.checkpoint.step if self.checkpoint else 0


def run_folders(root: Path, name: str) -> list[Path]:
    """Every run folder of that name below `root`."""
    return [path.parent for path in sorted(root.rglob(RUN_RECORD)) if Run(path.parent).name == name]


def best(runs: Sequence[Path], stage: str, asked: Json) -> Earlier | None:
    """The copy of a stage to continue: one that fits, finished, with the highest valid step, the youngest.

    `asked` are the parts of a cache key that it is to have. Of copies that do not fit, those of the same parameters
    come first, then those of the same code. Damaged records and checkpoints are passed over, which is said of each.
    NewerRecordError where a newer smallchat has written one: that work is not to be started again.
    """
    found = filter(None, [_read(run, stage, asked) for run in runs])
    return max(found, key=lambda e: (e.fit, e.done, e.step, e.record["started"]), default=None)


def bring(earlier: Earlier, run: Run, own: bool) -> None:
    """Copies a stage into a run folder; of the notebook's `own` its chosen and pinned checkpoints, too.

    Times of change stay. The record is the one that was found to hold: a finished stage that lacks a file is not
    finished in the copy. UserError where there is no room for it.
    """
    chosen = in_folder(earlier.folder / CHECKPOINTS) if own else []
    brought = {each.name for each in chosen if each == earlier.checkpoint or each.fact("pinned")}
    files = []
    for path in files_below(earlier.folder):
        inside = path.relative_to(earlier.folder).parts
        left_out = inside[0] == CHECKPOINTS and not brought.intersection(inside[1:2])
        if not left_out and not any(part.endswith(PARTIAL) for part in inside):
            files.append(path)
    name, source = earlier.folder.name, earlier.folder.parent
    size = bring_files(files, source, run.path)
    write_record(run.folder(name) / RECORD, earlier.record)
    for beside in (RUN_RECORD, LOG) if own else (RUN_RECORD,):
        if (source / beside).is_file() and not (run.path / beside).is_file():
            shutil.copyfile(source / beside, run.path / beside)
    print(f"{name}: taken from {earlier.folder} ({size / 1e6:,.1f} MB)")


def bring_files(files: Sequence[Path], source: Path, target: Path) -> int:
    """Copies files below `source` to where they are below `target`, with their times of change; returns their bytes.

    UserError, before the first, where there is no room for them.
    """
    needed, there = sum(file.stat().st_size for file in files), used(kaggle_root() / "working")
    if there + needed > LIMIT:
        raise UserError(
            f"{source} has {needed / 1e9:.1f} GB beside {there / 1e9:.1f} GB that are here, more than the "
            f"{LIMIT / 1e9:.0f} GB that Kaggle keeps: remove what else is in the working folder, or take a "
            "smaller base model."
        )
    for file in files:
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)
        copy.chmod(0o644)  # below input/ everything is read-only
    return needed


def _read(run: Path, stage: str, asked: Json) -> Earlier | None:
    """A stage of a run folder as far as it is whole; says what is damaged in it."""
    folder = run / stage
    try:
        record = Run(run).record(stage)
    except NewerRecordError:
        raise
    except UserError:
        record = {}
    if record is None:
        return None
    if not record.keys() >= NEEDED:  # cut short by the session's end: it can't be known what the work belongs to
        print(f"Note: {folder / RECORD} is damaged, and what is beside it is passed over.")
        return None
    parts = record["parts"]
    fit = [name not in asked or parts.get(name) == asked[name] for name in (PARAMETERS, CODE, MODULES, UPSTREAM)]
    own = [name for name in record["outputs"] if not name.startswith(f"{CHECKPOINTS}/")]
    sizes = {name: file.stat().st_size for name in own if (file := folder / name).is_file()}
    lost = [name for name in own if sizes.get(name) != record["outputs"][name]["bytes"]]
    for name in lost:
        del record["outputs"][name]
    if record["status"] == State.DONE:
        if not lost:
            return Earlier(folder, record, fit)
        print(f"Note: {folder} lacks {lost[0]}, or it is cut short: it is not taken as finished.")
        record["status"] = State.RUNNING
    checkpoint, damaged = newest_whole(folder / CHECKPOINTS)
    for each, problem in damaged.items():
        print(f"Note: {each.path} {problem} and is passed over.")
    return Earlier(folder, record, fit, checkpoint)


def continues(earlier: Earlier, state: StageState, stale: str, in_pipeline: bool) -> bool:
    """Whether the copy of a stage in the run folder is continued; one that is not is removed again.

    `stale` is ACCEPT, FORCE or '' for work that is stale. In a pipeline an earlier stage that runs again may make it
    fit again. UserError for long or unfinished work about which the bundle says nothing: nobody can be asked here.
    """
    judged = state.lasting if in_pipeline else state
    decision = decide(judged, Policy(accept=stale == ACCEPT, force=stale == FORCE))
    name, changes = state.spec.name, in_short(state.changes)
    if decision is Action.ASK:
        where = f"step {earlier.step}" if earlier.step else duration(state.seconds)
        keep = "" if state.blocking else "with --accept to keep it, "
        raise UserError(
            f"The {name} stage that is attached ({earlier.folder}, {where}) is stale ({changes}), and nothing has been "
            f"run: bundle again {keep}with --force to start again (what is attached stays as it is), or with another "
            "run_dir, and push that."
        )
    if decision.clears:
        shutil.rmtree(state.folder)
        print(f"{name}: starts again, for what {earlier.folder} holds is stale ({changes}).")
    elif decision.accepts or decision is Action.REFUSE:
        carry_out(decision, state)
        print(f"{name}: kept as it is, as --accept asks, though changed: {changes}.")
    return not decision.clears


# ---- what the output has room for


def used(folder: Path) -> int:
    """Bytes of all files below a folder; one that has two names counts once."""
    found = (path.stat() for path in files_below(folder) if not path.is_symlink())
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in found}.values())


def keep_under(working: Path, run: Run, limit: int = LIMIT) -> list[str]:
    """Drops what is half written, then checkpoints, until `working` is below the limit; returns what was dropped.

    Of an unfinished training the newest valid checkpoint stays whatever its size; of a finished one none is needed.
    """
    dropped: list[str] = []
    finished = run.state(maker("model").name) is State.DONE
    newest = None if finished else newest_whole(run.checkpoints_folder)[0]
    others = (checkpoint for checkpoint in run.checkpoints()[::-1] if checkpoint != newest)
    checkpoints = [each.path for each in sorted(others, key=lambda each: bool(each.fact("pinned")))]
    for candidate in [*run.path.parent.glob(".mirror-*"), *half_written(run.checkpoints_folder), *checkpoints]:
        if used(working) <= limit:
            break
        shutil.rmtree(candidate)
        dropped.append(str(candidate.relative_to(working)))
    return dropped
