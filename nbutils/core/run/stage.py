"""A stage at work in a run folder: its guard at the start, its record (`stage.json`) at the end.

At work in a run folder is one pipeline, or notebooks run by hand, never both: a pipeline locks it alone, notebooks
share the lock. The lock is the operating system's, and ends with its process however that ends.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

import psutil

from nbutils.core.errors import UserError
from nbutils.core.files import Json, shown
from nbutils.core.run import pause
from nbutils.core.run.decide import Policy, carry_out, decide, inspect
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

LOCK, OWNER = ".lock", ".owner-{}.txt"
"""The locked file of a run folder, and beside it who holds it: a file for each process."""

_held: dict[Path, IO[bytes]] = {}
"""Run folder → the lock of this process, for a notebook run by hand."""


class Stage:
    """One stage of one run, from its first cell (`begin`) to its last (`finish`)."""

    def __init__(self, stage: StageSpec, settings: Settings) -> None:
        self.spec = stage
        self.settings = settings
        self.layout = Run(settings.run_path)
        self.run = self.layout.path
        self.folder = self.layout.folder(stage.name)
        self.before = inspect(stage, settings)
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
            hold(settings.run_path, f"The notebook {spec(name).file}")
        try:
            stage = cls(spec(name), settings)
            stage._start()
        except BaseException:
            let_go(settings.run_path)
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
        record = self._write(status, outputs_of(self.folder, self.before.record.get("outputs")), **facts)
        let_go(self.run)
        print(f"{self.spec.name}: {record['status']} in {record['seconds']:.0f} s → {shown(self.folder)}")
        return record

    def _start(self) -> None:
        pause.clear(self.run)
        try:
            carry_out(decide(self.before, Policy()), self.before)
            self.folder.mkdir(parents=True, exist_ok=True)
            record = read_record(self.run / RUN_RECORD) or {"schema": SCHEMA, "name": self.run.name, "parameters": {}}
            record["parameters"] |= self.settings.model_dump(mode="json")
            write_record(self.run / RUN_RECORD, record | provenance() | {"hardware": machine()})
            self._write(State.RUNNING, {})
        except OSError as error:
            raise UserError(
                f"{shown(self.folder)} cannot be written ({error.strerror}): choose another run_dir, or free the disk."
            ) from error

    def _write(self, status: str, outputs: Json, **facts: Any) -> Json:
        before, seconds = self.before, time.time() - self.started
        earlier = 0.0 if before.stale else before.seconds  # of work that this run continues
        record = {
            "schema": SCHEMA,
            "stage": self.spec.name,
            "status": State(status),
            "key": before.key,
            "started": datetime.fromtimestamp(self.started, UTC).isoformat(),
            "seconds": round(seconds, 1),
            "work_seconds": round(max(seconds, earlier) if before.fits else seconds + earlier, 1),
            "parameters": self.settings.model_dump(mode="json"),
            "inputs": before.parts["upstream"],
            "parts": before.parts,
            **provenance(),
            "facts": facts,
            "outputs": outputs,
        }
        kept: tuple[str, ...] = ()
        if before.fits and before.record["outputs"] == outputs:  # opened again, and nothing new was made
            kept = ("started", "versions", "git_commit")
        if not before.stale:
            kept += ("accepted",)  # what continues accepted work depends on it
        record |= {name: before.record[name] for name in kept if name in before.record}
        write_record(self.folder / RECORD, record)
        return record


def check_upstream(
    stage: StageSpec, settings: Settings, allow_paused: bool, state_of: Callable[[str], State] | None = None
) -> None:
    """UserError where a stage that this one reads from is missing or unfinished, naming the notebook that makes it.

    `state_of` gives the state of each by its name; without it, as it is in the run folder.
    """
    run = Run(settings.run_path)
    for name in stage.reads:
        state = (state_of or run.state)(name)
        if state is State.DONE or (state is State.PAUSED and allow_paused):
            continue
        folder = run.folder(name)
        what = {
            State.ABSENT: f"{shown(folder / RECORD)} does not exist",
            State.PAUSED: f"{shown(folder)} is paused",
        }.get(state, f"{shown(folder)} is not finished")
        raise UserError(f"{what}: run notebooks/{spec(name).file} first (with run_dir = '{settings.run_dir}').")


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the run folder for a pipeline; UserError names another owner, or says why it can't be written."""
    try:
        lock = _take(run, "A pipeline", fcntl.LOCK_EX)
    except OSError as error:
        raise UserError(
            f"The run folder {shown(run)} cannot be written ({error.strerror}): choose another run_dir or free it."
        ) from None
    try:
        yield
    finally:
        _drop(run, lock)


def hold(run: Path, what: str) -> None:
    """Holds the run folder for a notebook run by hand, until `let_go` or the end of this process. Idempotent.

    UserError where a pipeline is at work there. Where the disk knows no locks or can't be written it says so.
    """
    if run in _held and (run / LOCK).exists():
        return
    try:
        _held[run] = _take(run, what, fcntl.LOCK_SH)
    except OSError as error:
        print(f"Note: {shown(run)} cannot be locked ({error.strerror}): start no pipeline there meanwhile.")


def let_go(run: Path) -> None:
    """Ends what `hold` began; nothing where this process does not hold the run folder."""
    if run in _held:
        _drop(run, _held.pop(run))


def _take(run: Path, what: str, kind: int) -> IO[bytes]:
    run.mkdir(parents=True, exist_ok=True)
    lock = (run / LOCK).open("ab")
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        owners = (file for file in run.glob(OWNER.format("*")) if psutil.pid_exists(int(file.stem.split("-")[1])))
        owner = next((file.read_text(encoding="utf-8") for file in owners), "Another process")
        raise UserError(
            f"{owner} is at work in {shown(run)}: wait for a pipeline, finish a notebook or shut its kernel down, or "
            "choose another run_dir."
        ) from None
    if not os.fstat(lock.fileno()).st_nlink:  # its last owner has removed it meanwhile: it locks nobody else out
        return _take(run, what, kind)
    who = f"{what}, process {os.getpid()} on {socket.gethostname()},"
    (run / OWNER.format(os.getpid())).write_text(who, encoding="utf-8")
    return lock


def _drop(run: Path, lock: IO[bytes]) -> None:
    """Releases the lock; its last owner removes it, and what killed ones left."""
    with suppress(OSError):
        (run / OWNER.format(os.getpid())).unlink(missing_ok=True)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for file in (*run.glob(OWNER.format("*")), run / LOCK):
            file.unlink(missing_ok=True)
        run.rmdir()  # where nothing was made there
    lock.close()
