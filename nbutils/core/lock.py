"""One pipeline at a time in a run folder: a lock that the system itself lets go of when its owner dies."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

from nbutils.core.errors import UserError
from nbutils.core.files import shown

FILE = ".pipeline.lock"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the run folder; UserError names another owner, or says why it can't be written."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = _acquired(run / FILE)
    except OSError as error:
        raise UserError(
            f"The run folder {shown(run)} cannot be written ({error.strerror}): choose another run_dir or free it."
        ) from None
    if file is None:
        raise UserError(
            f"{owner(run) or 'Another pipeline'} is at work in {shown(run)}: wait, or choose another run_dir."
        )
    try:
        yield
    finally:
        (run / FILE).unlink(missing_ok=True)
        file.close()


def owner(run: Path) -> str | None:
    """Who is at work in the run folder, in words; None where nobody is."""
    path = run / FILE
    try:
        with path.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return _words(path)


def _acquired(path: Path) -> IO[str] | None:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        # The last owner may have removed the file between our opening and our locking it.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()
    file.truncate(0)
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    json.dump({"user": _user(), "host": socket.gethostname(), "pid": os.getpid(), "started": started}, file)
    file.flush()
    return file


def _words(path: Path) -> str:
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return f"{who['user']} (process {who['pid']} on {who['host']}, since {who['started']})"
    except (ValueError, KeyError, OSError):
        return "Another pipeline"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return f"user {os.getuid()}"
