"""A stage at work in a run folder: its guard at the start, its record (`stage.json`) at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from nbutils.core.errors import UserError
from nbutils.core.files import Json, shown
from nbutils.core.run import lock, pause
from nbutils.core.run.decide import Action, Policy, carry_out, decide, inspect
from nbutils.core.run.layout import Run
from nbutils.core.run.record import (
    RECORD,
    RUN_RECORD,
    SCHEMA,
    machine,
    outputs_of,
    provenance,
    read_record,
    write_record,
)
from nbutils.core.run.state import State
from nbutils.core.settings import Settings
from nbutils.core.stages import StageSpec, spec

ALLOW_PAUSED = "NBUTILS_ALLOW_PAUSED"
"""Environment variable: stages may read what a paused stage has made so far (`--allow-paused`)."""


class Stage:
    """One stage of one run, from its first cell (`begin`) to its last (`finish`)."""

    def __init__(self, stage: StageSpec, settings: Settings) -> None:
        self.spec = stage
        self.settings = settings
        self.layout = Run(settings.run_path)
        self.run = self.layout.path
        self.folder = self.layout.folder(stage.name)
        self.before = inspect(stage, settings)
        self.decision = decide(self.before, Policy())
        self._earlier_seconds = 0.0 if self.before.stale else self.before.seconds  # of work that this run continues
        self.started = time.time()

    @classmethod
    def begin(cls, name: str, settings: Settings) -> Self:
        """Opens the stage: checks what it reads, and clears stale work that an earlier run left.

        Work that can be resumed (same key) stays as it is. Without a pipeline above it the kernel holds the run folder
        until `finish`, so that no pipeline starts there meanwhile. UserError where an upstream stage is missing or
        unfinished (naming the notebook that makes it), where a pipeline is at work in the run folder, and where
        replacing the earlier work needs a person's word (see `nbutils.core.run.decide`).
        """
        check_upstream(spec(name), settings, bool(os.environ.get(ALLOW_PAUSED)))
        by_hand = pause.PIPELINE not in os.environ
        if by_hand:
            lock.hold(settings.run_path, f"notebook {spec(name).file}")
        try:
            stage = cls(spec(name), settings)
            stage._start()
        except BaseException:
            lock.let_go(settings.run_path)
            raise
        if by_hand and not stage.before.stale and (differing := stage.before.library_changes):
            print(f"{name}: its work so far was done with {differing}.")
        return stage

    def upstream(self, name: str) -> Path:
        """The folder of an earlier stage of the same run."""
        return self.layout.folder(name)

    def finish(self, status: str = State.DONE, **facts: Any) -> Json:
        """Writes `stage.json`, last and atomically: key, inputs, outputs with sha256, seconds, status.

        `facts` are JSON values about the result; `made` is one line for the pipeline's table, and a paused stage
        gives `step`, `fraction` (0 to 1) and `how_to_continue`.
        """
        outputs = outputs_of(self.folder, (self.before.record or {}).get("outputs"))
        seconds = time.time() - self.started
        earlier = self._earlier_seconds
        work = max(seconds, earlier) if self.before.fits else seconds + earlier
        record = self._write(status, outputs, work_seconds=work, **facts)
        lock.let_go(self.run)
        print(f"{self.spec.name}: {record['status']} in {record['seconds']:.0f} s → {shown(self.folder)}")
        return record

    def _start(self) -> None:
        pause.clear(self.run)
        try:
            if self.decision.action is Action.ASK or self.decision.clears:
                carry_out(self.decision, self.before)
            self.folder.mkdir(parents=True, exist_ok=True)
            record = read_record(self.run / RUN_RECORD) or {"schema": SCHEMA, "name": self.run.name, "parameters": {}}
            record["parameters"] |= self.settings.model_dump(mode="json")
            write_record(self.run / RUN_RECORD, record | provenance() | {"hardware": machine()})
            self._write(State.RUNNING, {}, self._earlier_seconds)
        except OSError as error:
            raise UserError(
                f"{shown(self.folder)} cannot be written ({error.strerror}): choose another run_dir, or free the disk."
            ) from error

    def _write(self, status: str, outputs: Json, work_seconds: float, **facts: Any) -> Json:
        record = {
            "schema": SCHEMA,
            "stage": self.spec.name,
            "status": State(status),
            "key": self.before.key,
            "started": datetime.fromtimestamp(self.started, UTC).isoformat(),
            "seconds": round(time.time() - self.started, 1),
            "work_seconds": round(work_seconds, 1),
            "parameters": self.settings.model_dump(mode="json"),
            "inputs": self.before.parts["upstream"],
            "parts": self.before.parts,
            **provenance(),
            "facts": facts,
            "outputs": outputs,
        }
        earlier = self.before.record or {}
        then, now = (
            {name: entry["sha256"] for name, entry in files.items()} for files in (earlier.get("outputs", {}), outputs)
        )
        if self.before.fits and then == now:  # opened again, and nothing new was made: its provenance stays true
            record |= {name: earlier.get(name) for name in ("started", "versions", "git_commit")}
        if earlier.get("accepted") and not self.before.stale:
            record["accepted"] = earlier["accepted"]  # what continues accepted work depends on it
        write_record(self.folder / RECORD, record)
        return record


def check_upstream(stage: StageSpec, settings: Settings, allow_paused: bool) -> None:
    """UserError where a stage that this one reads from is missing or unfinished, naming the notebook that makes it."""
    problem = upstream_problem(stage, settings, allow_paused, Run(settings.run_path).state)
    if problem:
        raise UserError(problem)


def upstream_problem(
    stage: StageSpec, settings: Settings, allow_paused: bool, state_of: Callable[[str], State]
) -> str | None:
    """The sentence on a stage that this one cannot be run on, by the state of each; None where there is none."""
    for name in stage.reads:
        state, folder = state_of(name), settings.run_path / name
        if state is State.DONE or (state is State.PAUSED and allow_paused):
            continue
        what = {State.ABSENT: "does not exist", State.PAUSED: "is paused"}.get(state, "is not finished")
        if state is State.ABSENT and folder.is_dir():
            folder, what = folder / RECORD, "is missing"
        return f"{shown(folder)} {what}: run notebooks/{spec(name).file} first (with run_dir = '{settings.run_dir}')."
    return None
