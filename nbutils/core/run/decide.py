"""What a stage's folder is worth today, and what is done with it: one decision for `run`, `--explain`, Kaggle and a
notebook run by hand. Nothing is ever deleted that took long, unless a person says so.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from nbutils.core.errors import UserError
from nbutils.core.files import Json, files_below, sha256_of_json, shown
from nbutils.core.run.checkpoints import in_folder
from nbutils.core.run.key import UPSTREAM, changes, key_parts
from nbutils.core.run.layout import CHECKPOINTS, Run
from nbutils.core.run.record import RECORD, versions, write_record
from nbutils.core.run.state import Change, Kind, State, in_short
from nbutils.core.settings import Settings
from nbutils.core.stages import StageSpec, maker, stages
from nbutils.core.text import duration

LONG_WORK_SECONDS = 600.0
"""Stale work that took longer than this is never replaced without asking."""


class Action(StrEnum):
    """What is done with a stage. `keep`: the stale work first becomes today's."""

    SKIP = "skip"
    RUN = "run"
    RESUME = "resume"
    LEAVE = "leave paused"
    ASK = "ask"
    REFUSE = "refuse"
    KEEP = "keep"
    KEEP_AND_RESUME = "keep and resume"
    RUN_AGAIN = "run again"
    SET_ASIDE = "set aside and run"

    @property
    def accepts(self) -> bool:
        """Whether stale work is kept."""
        return self in (Action.KEEP, Action.KEEP_AND_RESUME)

    @property
    def clears(self) -> bool:
        """Whether what is there goes."""
        return self in (Action.RUN_AGAIN, Action.SET_ASIDE)


@dataclass(frozen=True)
class Policy:
    """What a person said about work that is there.

    `accept`: keep long work that is stale. `force`: set it aside. `allow_paused`: a paused stage stays paused, and
    later ones read what it has made so far.
    """

    accept: bool = False
    force: bool = False
    allow_paused: bool = False

    @property
    def again(self) -> str:
        """The option that runs every chosen stage again, whatever it has done so far; '' where none does."""
        return ""


@dataclass(frozen=True)
class StageState:
    """A stage's folder under today's settings and code.

    `changes`: what made it stale. `seconds`: how long the work in it took. `protected`: the work is long, or unfinished
    with checkpoints, so that replacing it needs a person's word.
    """

    spec: StageSpec
    folder: Path
    parts: Json
    state: State = State.ABSENT
    changes: tuple[Change, ...] = ()
    seconds: float = 0.0
    protected: bool = False
    record: Json = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The cache key under today's settings and code."""
        return sha256_of_json(self.parts)

    @property
    def stale(self) -> bool:
        """Whether something has changed that the work depends on."""
        return bool(self.changes)

    @property
    def fits(self) -> bool:
        """Whether it is finished, and nothing has changed."""
        return self.state is State.DONE and not self.stale

    @property
    def lasting(self) -> StageState:
        """The same without changed upstream files: what an earlier stage of this run makes again may fit again."""
        return replace(self, changes=tuple(change for change in self.changes if change.kind is not Kind.UPSTREAM))

    @property
    def blocking(self) -> list[Change]:
        """The changes over which unfinished work cannot be continued, even if a person accepts it; none for finished.

        Files outside the run are no such change: what the work took from them is in the stage's own folder.
        """
        serious = (Kind.PARAMETER, Kind.UPSTREAM)
        return [change for change in self.changes if self.state is not State.DONE and change.kind in serious]

    @property
    def reason(self) -> str:
        """The state in a few words."""
        if self.stale:
            return f"changed: {in_short(self.changes)}"
        error = self.record.get("error")
        return {
            State.ABSENT: "never run",
            State.DONE: "nothing that it depends on has changed",
            State.PAUSED: f"paused{progress_words(self.record)}",
        }.get(self.state, f"did not finish ({error})" if error else "was interrupted before it finished")

    @property
    def library_changes(self) -> str:
        """'torch 2.12 (now 2.13), …' for each library that has changed since the work; '' where none has."""
        before, now = self.record.get("versions", {}), versions()
        return ", ".join(
            f"{name} {before[name]} (now {now[name]})" for name in before if now.get(name) not in (None, before[name])
        )


def inspect(stage: StageSpec, settings: Settings) -> StageState:
    """The state of one stage of the settings' run folder."""
    run = Run(settings.run_path)
    folder, record = run.folder(stage.name), run.record(stage.name)
    parts = key_parts(stage, settings)
    if record is None:
        return StageState(stage, folder, parts)
    newest = run.newest_sealed() if stage == maker("model") and record["status"] != State.DONE else None
    free = (newest.fact("open") if newest else None) or ()
    changed = [c for c in changes(record["parts"], parts) if c.kind is not Kind.PARAMETER or c.name not in free]
    changed += [Change(Kind.MISSING, shown(folder / name)) for name in _lost(stage, folder, record)]
    seconds, state = work_seconds(folder, record), State(record["status"])
    protected = seconds > LONG_WORK_SECONDS or (state is not State.DONE and bool(in_folder(folder / CHECKPOINTS)))
    return StageState(stage, folder, parts, state, tuple(changed), seconds, protected, record)


def decide(state: StageState, policy: Policy) -> Action:
    """What is done with a stage once all that it reads is as it will be read."""
    if state.state is State.ABSENT:
        return Action.RUN
    done, left = state.state is State.DONE, state.state is State.PAUSED and policy.allow_paused
    if state.stale and state.protected:
        if policy.accept and state.blocking:
            return Action.REFUSE
        if policy.accept:
            return Action.KEEP if done or left else Action.KEEP_AND_RESUME
        if not (policy.force or policy.again):
            return Action.ASK
    if state.stale or policy.again:
        return Action.SET_ASIDE if state.protected else Action.RUN_AGAIN
    if done:
        return Action.SKIP
    return Action.LEAVE if left else Action.RESUME


def carry_out(decision: Action, state: StageState) -> Path | None:
    """Does to the stage's folder what was decided; where earlier work was set aside. UserError where a person decides.

    OSError where the folder cannot be changed.
    """
    if decision is Action.ASK:
        raise UserError(
            f"{shown(state.folder)} holds {duration(state.seconds)} of work that is stale ({in_short(state.changes)}): "
            "run again with --accept to keep it, with --force to set it aside and start again, or choose another "
            "run_dir."
        )
    if decision is Action.REFUSE:
        raise UserError(
            f"The checkpoints in {shown(state.folder)} belong to other settings or data "
            f"({in_short(state.blocking)}) and cannot be continued: set those back, or use --force to start again."
        )
    if decision.accepts:  # the record gets today's key, and remembers what had changed
        now = datetime.now(UTC).isoformat(timespec="seconds")
        accepted = [*state.record.get("accepted", []), {"at": now, "changed": [str(c) for c in state.changes]}]
        for name in _lost(state.spec, state.folder, state.record):
            del state.record["outputs"][name]
        today = {"key": state.key, "parts": state.parts, "inputs": state.parts[UPSTREAM], "accepted": accepted}
        write_record(state.folder / RECORD, state.record | today)
    if decision is Action.SET_ASIDE:
        return state.folder.rename(f"{state.folder}-{datetime.now():%Y-%m-%dT%H-%M-%S-%f}")
    if decision.clears:
        (state.folder / RECORD).unlink()  # first, so that nothing half removed looks done
        shutil.rmtree(state.folder)
    return None


def work_seconds(folder: Path, record: Json) -> float:
    """Seconds of work in a stage's folder, those of a run that ended without a word included (by its newest file)."""
    seconds = float(record.get("work_seconds", 0.0))
    if record["status"] != State.RUNNING:
        return seconds
    started = datetime.fromisoformat(record["started"]).timestamp()
    newest = max([started, *(path.stat().st_mtime for path in files_below(folder))])
    return seconds + newest - started


def progress_words(record: Json | None) -> str:
    """' at 62 % (step 310)' from a paused stage's facts; '' where it gives none."""
    facts = (record or {}).get("facts", {})
    return f" at {100 * facts['fraction']:.0f} % (step {facts['step']})" if "fraction" in facts else ""


def _lost(stage: StageSpec, folder: Path, record: Json) -> list[str]:
    """Files of a stage that later ones read, and that are there no more."""
    return [
        name
        for name in record["outputs"]
        if not (folder / name).is_file() and any(later.needs(stage.name, name) for later in stages())
    ]
