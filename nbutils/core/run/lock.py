"""Who is at work in a run folder: one pipeline, or notebooks run by hand, never both.

Each holds a lock of the operating system's, which ends with its process however that ends. A file beside the lock says
who it is.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, shown

PIPELINE = ".pipeline.lock"
NOTEBOOK = ".notebook-{}.lock"
PROBE_SECONDS = 0.5
"""A notebook that begins holds the pipeline's lock for a moment, to see that it is free: others wait that long."""

_held: dict[Path, FileLock] = {}
"""Run folder → the lock of this process, for a notebook run by hand."""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the run folder for a pipeline; UserError names another owner, or says why it can't be written."""
    try:
        lock = _take(run / PIPELINE, "pipeline", PROBE_SECONDS)
        if lock is None:
            raise _taken(run, run / PIPELINE)
    except OSError as error:
        raise UserError(
            f"The run folder {shown(run)} cannot be written ({error.strerror}): choose another run_dir or free it."
        ) from None
    try:
        for path in run.glob(NOTEBOOK.format("*")):
            notebook = _take(path, "")
            if notebook is None:
                raise _taken(run, path)
            _drop(notebook)  # its kernel died
        yield
    finally:
        _drop(lock)


def hold(run: Path, what: str) -> None:
    """Holds the run folder for a notebook run by hand, until `let_go` or the end of this process. Idempotent.

    UserError where a pipeline is at work there. Where the disk knows no locks or can't be written it says so.
    """
    if run in _held and Path(_held[run].lock_file).exists():
        return
    try:
        lock = _take(run / NOTEBOOK.format(os.getpid()), what)
        pipeline = _take(run / PIPELINE, "", PROBE_SECONDS)
    except OSError as error:
        print(f"Note: {shown(run)} cannot be locked ({error.strerror}): start no pipeline there meanwhile.")
        return
    if lock is not None and pipeline is None:
        _drop(lock)
        raise _taken(run, run / PIPELINE)
    if pipeline is not None:
        _drop(pipeline)
    if lock is not None:
        _held[run] = lock


def let_go(run: Path) -> None:
    """Ends what `hold` began; nothing where this process does not hold the run folder."""
    lock = _held.pop(run, None)
    if lock is not None:
        _drop(lock)


def _take(path: Path, what: str, seconds: float = 0.0) -> FileLock | None:
    """The lock, held now, and its owner noted beside it unless `what` is empty; None where another keeps it so long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return None
    if what:
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        who = {
            "user": os.environ.get("USER") or f"user {os.getuid()}",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": started,
            "what": what,
        }
        path.with_suffix(".json").write_text(json.dumps(who), encoding="utf-8")
    return lock


def _drop(lock: FileLock) -> None:
    path = Path(lock.lock_file)
    with suppress(OSError):
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    lock.release(force=True)


def _taken(run: Path, path: Path) -> UserError:
    try:
        who = read_json(path.with_suffix(".json"))
        owner = "{user} ({what}, process {pid} on {host}, since {started})".format(**who)
    except (OSError, ValueError, KeyError):
        owner = "Another process"
    wait = "wait" if path.name == PIPELINE else "finish it or shut its kernel down"
    return UserError(f"{owner} is at work in {shown(run)}: {wait}, or choose another run_dir.")
