"""Who is at work in a run folder: one pipeline, or notebooks run by hand, never both.

The system's own file locks hold it, a pipeline's for itself alone and a notebook's shared with other notebooks: they
are let go of when their owner dies, in whatever way.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from nbutils.core.errors import UserError
from nbutils.core.files import shown

FILE = ".pipeline.lock"

_held: dict[Path, IO[str]] = {}
"""The run folders that a notebook in this process holds."""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the run folder for a pipeline; UserError names another owner, or says why it can't be written."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = _acquired(run / FILE, fcntl.LOCK_EX)
    except OSError as error:
        raise UserError(
            f"The run folder {shown(run)} cannot be written ({error.strerror}): choose another run_dir or free it."
        ) from None
    if file is None:
        raise _taken(run)
    try:
        yield
    finally:
        (run / FILE).unlink(missing_ok=True)
        file.close()


def hold(run: Path, what: str) -> None:
    """Holds the run folder for a notebook run by hand, until `let_go` or this process's end; again is no matter.

    UserError where a pipeline is at work there. A disk that can't be written or knows no locks is not said here.
    """
    held = _held.pop(run, None)
    if held and _is(held, run / FILE):
        _held[run] = held
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = _acquired(run / FILE, fcntl.LOCK_SH, what)
    except OSError:
        return
    if file is None:
        raise _taken(run)
    _held[run] = file


def let_go(run: Path) -> None:
    """Ends what `hold` began; nothing where this process does not hold the run folder."""
    file = _held.pop(run, None)
    if file is None:
        return
    with file, suppress(OSError):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (run / FILE).unlink(missing_ok=True)
        except BlockingIOError:  # other notebooks hold it too
            file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "gone": True}) + "\n")
            file.flush()
        # A process forked meanwhile shares the lock: it is taken off, and not only closed here.
        fcntl.flock(file, fcntl.LOCK_UN)


def _taken(run: Path) -> UserError:
    path = run / FILE
    who, notebook = _words(path), _owner(path).get("what")
    wait = "finish it or shut its kernel down" if notebook else "wait"
    return UserError(f"{who} is at work in {shown(run)}: {wait}, or choose another run_dir.")


def _acquired(path: Path, kind: int, what: str = "") -> IO[str] | None:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        # The last owner may have removed the file between our opening and our locking it.
        if _is(file, path):
            break
        file.close()
    if kind == fcntl.LOCK_EX:
        file.truncate(0)
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    who = {"user": _user(), "host": socket.gethostname(), "pid": os.getpid(), "started": started, "what": what}
    file.write(json.dumps(who) + "\n")
    file.flush()
    return file


def _is(file: IO[str], path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _owner(path: Path) -> dict[str, Any]:
    """The newest entry of a lock file that holds and whose process lives, as far as can be seen from here; or {}."""
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, OSError):
        return {}
    gone = set()
    for entry in reversed([entry for entry in entries if isinstance(entry, dict)]):
        who = entry.get("host"), entry.get("pid")
        if entry.get("gone"):
            gone.add(who)
        elif who not in gone and _lives(entry):
            return entry
    return {}


def _lives(entry: dict[str, Any]) -> bool:
    if entry.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(entry["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _words(path: Path) -> str:
    try:
        who = _owner(path)
        what = f"{who['what']}, " if who.get("what") else ""
        return f"{who['user']} ({what}process {who['pid']} on {who['host']}, since {who['started']})"
    except KeyError:
        return "Another pipeline"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return f"user {os.getuid()}"
