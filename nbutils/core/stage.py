"""A stage at work in a run folder: its guard at the start, its record (`stage.json`) at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from nbutils.core import lock, pause
from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.core.notebooks import StageSpec, spec
from nbutils.core.pause import PIPELINE
from nbutils.core.provenance import git_commit, machine, versions
from nbutils.core.record import (
    RECORD,
    SCHEMA,
    outputs_of,
    read_record,
    stage_record,
    stage_status,
    trained_model,
    write_record,
)
from nbutils.core.settings import Settings
from nbutils.core.verdict import Verdict, ask, clear, judge, library_changes

__all__ = ["RECORD", "SCHEMA", "Stage", "read_record", "stage_record", "stage_status", "trained_model"]

ALLOW_PAUSED = "NBUTILS_ALLOW_PAUSED"
"""Environment variable: stages may read what a paused stage has made so far (`--allow-paused`)."""


class Stage:
    """One stage of one run, from its first cell (`begin`) to its last (`finish`)."""

    def __init__(self, stage: StageSpec, settings: Settings) -> None:
        self.spec = stage
        self.settings = settings
        self.run = settings.run_path
        self.folder = self.run / stage.name
        self.verdict: Verdict = judge(stage, settings)
        self.parts = self.verdict.parts
        self.key = self.verdict.key
        self.started = time.time()

    @classmethod
    def begin(cls, name: str, settings: Settings) -> Self:
        """Opens the stage: checks what it reads, clears what an earlier run with another key left behind.

        Work that can go on (same key) stays as it is. Without a pipeline above it the kernel holds the run folder
        until `finish`, so that no pipeline starts there meanwhile. UserError where an upstream stage is missing or
        unfinished (naming the notebook that makes it), where a pipeline is at work in the run folder, and where
        replacing the earlier work needs a person's word (see `nbutils.core.verdict`).
        """
        check_upstream(spec(name), settings, bool(os.environ.get(ALLOW_PAUSED)))
        by_hand = PIPELINE not in os.environ
        if by_hand:
            lock.hold(settings.run_path, f"notebook {spec(name).file}")
        try:
            stage = cls(spec(name), settings)
            if stage.verdict.state == "stale" and stage.verdict.protected:
                raise ask(stage.spec, settings, stage.verdict)
            stage._start()
        except BaseException:
            lock.let_go(settings.run_path)
            raise
        if by_hand and stage.verdict.state != "stale" and (differing := library_changes(stage.verdict)):
            print(f"{name}: its work so far was done with {differing}.")
        return stage

    def upstream(self, name: str) -> Path:
        """The folder of an earlier stage of the same run."""
        return self.run / name

    def trained_model(self) -> Path:
        """The folder of the trained model, or with `--allow-paused` of the newest checkpoint's model."""
        return trained_model(self.run)

    def finish(self, status: str = "done", **facts: Any) -> dict[str, Any]:
        """Writes `stage.json`, last and atomically: key, inputs, outputs with sha256, seconds, status.

        `facts` are JSON values about the result; `made` is one line for the pipeline's table, and a paused stage
        gives `step`, `fraction` (0 to 1), `model` (folder of the newest checkpoint's model) and `how_to_continue`.
        """
        outputs = outputs_of(self.folder, (self.verdict.record or {}).get("outputs"))
        seconds = time.time() - self.started
        work = (
            max(seconds, self._earlier_seconds()) if self.verdict.state == "done" else seconds + self._earlier_seconds()
        )
        record = self._write(status, outputs, work_seconds=work, **facts)
        lock.let_go(self.run)
        print(f"{self.spec.name}: {status} in {record['seconds']:.0f} s → {shown(self.folder)}")
        return record

    def _start(self) -> None:
        pause.clear(self.run)
        try:
            if self.verdict.state == "stale":
                clear(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_run_record()
            self._write("running", {}, work_seconds=self._earlier_seconds())
        except OSError as error:
            raise UserError(
                f"{shown(self.folder)} cannot be written ({error.strerror}): choose another run_dir, or free the disk."
            ) from error

    def _earlier_seconds(self) -> float:
        """Seconds of work that this run goes on from."""
        return self.verdict.work_seconds if self.verdict.state != "stale" else 0.0

    def _write(self, status: str, outputs: dict[str, Any], work_seconds: float, **facts: Any) -> dict[str, Any]:
        record = {
            "schema": SCHEMA,
            "stage": self.spec.name,
            "status": status,
            "key": self.key,
            "started": datetime.fromtimestamp(self.started, UTC).isoformat(),
            "seconds": round(time.time() - self.started, 1),
            "work_seconds": round(work_seconds, 1),
            "parameters": self.settings.model_dump(mode="json"),
            "inputs": self.parts["upstream"],
            "parts": self.parts,
            "versions": versions(),
            "git_commit": git_commit(),
            "facts": facts,
            "outputs": outputs,
        }
        if self._made_before(outputs):  # opened again, and nothing new was made: where it came from stays true
            record |= {name: (self.verdict.record or {}).get(name) for name in ("started", "versions", "git_commit")}
        accepted = (self.verdict.record or {}).get("accepted")
        if accepted and self.verdict.state != "stale":
            record["accepted"] = accepted  # what goes on from accepted work stands on it
        write_record(self.folder / RECORD, record)
        return record

    def _made_before(self, outputs: dict[str, Any]) -> bool:
        """Whether these files are those that the stage had finished with."""
        before = (self.verdict.record or {}).get("outputs", {})
        then, now = ({name: entry["sha256"] for name, entry in files.items()} for files in (before, outputs))
        return self.verdict.state == "done" and then == now

    def _write_run_record(self) -> None:
        path = self.run / "run.json"
        record = read_record(path) or {"schema": SCHEMA, "name": self.run.name, "parameters": {}}
        record["parameters"] |= self.settings.model_dump(mode="json")
        record |= {"versions": versions(), "git_commit": git_commit(), "hardware": machine()}
        write_record(path, record)


def check_upstream(stage: StageSpec, settings: Settings, allow_paused: bool) -> None:
    """UserError where a stage that this one reads from is missing or unfinished, naming the notebook that makes it."""
    problem = upstream_problem(stage, settings, allow_paused, lambda name: stage_status(settings.run_path, name))
    if problem:
        raise UserError(problem)


def upstream_problem(
    stage: StageSpec, settings: Settings, allow_paused: bool, status_of: Callable[[str], str]
) -> str | None:
    """The sentence on a stage that this one cannot be run on, by the status of each; None where there is none."""
    for name in stage.reads:
        status = status_of(name)
        if status == "done" or (status == "paused" and allow_paused):
            continue
        folder = settings.run_path / name
        if status == "absent" and folder.is_dir():
            folder, what = folder / RECORD, "is missing"
        else:
            what = {"absent": "does not exist", "paused": "is paused"}.get(status, "is not finished")
        return f"{shown(folder)} {what}: run notebooks/{spec(name).file} first (with run_dir = '{settings.run_dir}')."
    return None
