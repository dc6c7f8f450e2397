"""Runs a program in several processes with torchrun, follows the events that it writes, and leaves no process behind.

Such a program is given one JSON file. It appends events to `progress.jsonl` beside that file, one JSON object a line;
what its processes print goes into `worker.log`. As a program itself (`python -m nbutils.core.torchrun FOLDER …`) this
module is torchrun, with one event more: which rank failed first.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

from nbutils.core.errors import UserError
from nbutils.core.files import append_jsonl, shown, write_text
from nbutils.core.text import redact

PARENT = "NBUTILS_PARENT"
"""Environment variable: the process, usually a notebook's kernel, that the workers must not outlive."""
AGENT = "TORCHELASTIC_RUN_ID"
"""Environment variable by which workers know that torchrun is their parent."""
STARTED = "NBUTILS_STARTED"
"""Environment variable: when the time budget began, in seconds since the epoch. A Kaggle session has set it."""
PEER_TO_PEER = "NCCL_P2P_DISABLE"
"""Environment variable: where it is 1, GPUs exchange through the host's memory. NCCL hangs on some machines without."""

PROGRESS, LOG = "progress.jsonl", "worker.log"
LOG_LINES = 40
POLL_SECONDS = 0.2
GRACE_SECONDS = 40.0
"""How long torchrun may take to end its workers; it gives them 30."""
RANK_PREFIX = "[rank {}] "
"""Stands before each line of a worker's traceback: the processes share one log."""

EXIT_USER_ERROR = 3
"""Exit status after an error that a person can mend."""
EXIT_HANG = 75
"""Exit status of a worker whose first exchange with the other workers did not end in time."""
PEER_LOST, PEER_LOST_SECONDS = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited"), 3.0
"""What an exchange says where another rank has gone; this rank then ends a little later, since torchrun blames the
rank that it sees end first, and both may end within one of its looks."""

Event = dict[str, Any]


class Hang(Exception):
    """The workers' first exchange did not end."""


# ---- in a worker


def end_with(*parents: int) -> None:
    """Ends this process within a second of the first of these processes (their ids) to end, in whatever way."""

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            watched = list(map(psutil.Process, parents))
            while all(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in watched):
                time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def tell(folder: Path, event: str, **facts: Any) -> None:
    """Appends an event for whoever follows the program."""
    append_jsonl(folder / PROGRESS, {"event": event, "time": round(time.time(), 3)} | facts)


def run_worker(folder: Path, run_rank: Callable[[], None]) -> int:
    """Does the work of one rank and returns its exit status; the sentence of a UserError becomes an event.

    The workers are grandchildren of the notebook's kernel, and torchrun makes each the leader of a session of its own:
    so each watches both. A worker that was started without torchrun watches nobody.
    """
    parents = [int(os.environ[PARENT])] if PARENT in os.environ else []
    end_with(*parents, *([os.getppid()] if AGENT in os.environ else []))
    try:
        run_rank()
    except UserError as error:
        print(error, file=sys.stderr)
        with suppress(OSError):  # the disk may be full
            tell(folder, "error", message=str(error))
        return EXIT_USER_ERROR
    except Exception as error:
        for line in traceback.format_exc().splitlines():
            print(f"{RANK_PREFIX.format(os.environ.get('RANK', '0'))}{line}", file=sys.stderr, flush=True)
        if any(words in str(error) for words in PEER_LOST):
            time.sleep(PEER_LOST_SECONDS)
        return 1
    return 0


@contextmanager
def within(seconds: float, folder: Path) -> Iterator[None]:
    """Ends this worker where the block takes longer, and says so: a hung exchange cannot be interrupted."""

    def end() -> None:
        tell(folder, "hang")
        os._exit(EXIT_HANG)

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def leave(status: int) -> NoReturn:
    """Ends this worker at once: threads of libraries must not keep a failed rank alive."""
    import torch.distributed as dist

    if dist.is_initialized() and status == 0:
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


# ---- in the notebook's kernel


def command(module: str, request: Path, processes: int) -> list[str]:
    """The command that runs the program on this machine."""
    return [
        sys.executable,
        "-m",
        "nbutils.core.torchrun",
        str(request.parent),
        "--standalone",
        "--local-addr=127.0.0.1",  # the machine's own name may lead nowhere
        f"--nproc-per-node={processes}",
        "-m",
        module,
        str(request),
    ]


class Torchrun:
    """A torchrun program of this machine.

    `request` is the JSON file that it reads, `activity` what it does in one word, `knob` the parameter to lower where
    memory runs out, `environment` what its processes get beside this one's environment.
    """

    def __init__(
        self, module: str, request: Path, processes: int, *, activity: str, knob: str, **environment: str
    ) -> None:
        self.folder, self.activity, self.knob = request.parent, activity, knob
        self.command = command(module, request, processes)
        self.environment = os.environ | {"PYTHONUNBUFFERED": "1", PARENT: str(os.getpid())} | environment
        self._process: subprocess.Popen[bytes] | None = None

    def events(self) -> Generator[Event, None, None]:
        """Starts the processes and yields each event as it happens. Close the generator to end them earlier.

        UserError with a worker's own sentence, or with the last lines of the log; Hang where the first exchange hung.
        """
        write_text(self.folder / PROGRESS, "")
        problem: Event = {}
        with subprocess.Popen(
            self.command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            self._process = process
            log = threading.Thread(target=_log, args=(process, self.folder / LOG), daemon=True, name="worker-log")
            log.start()
            try:
                for event in _followed(process, self.folder / PROGRESS):
                    if event["event"] in ("error", "hang", "failed"):
                        problem = problem or event
                    yield event
            finally:  # torchrun is asked to end, and ends its workers
                process.terminate()
                try:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=GRACE_SECONDS)
                finally:
                    self.kill()
                log.join(timeout=10)
        if process.returncode:
            if problem.get("event") == "hang":
                raise Hang
            raise UserError(self.failure(problem, process.returncode))

    def kill(self) -> None:
        """Ends all processes at once; also workers that still import torch, and follow nobody yet."""
        if self._process is not None and self._process.poll() is None:
            torchrun = psutil.Process(self._process.pid)
            for process in [torchrun, *torchrun.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def failure(self, problem: Event, status: int) -> str:
        """Why the program ended, for people: a worker's sentence, or which rank failed, with its last 40 lines."""
        if "message" in problem:
            return str(problem["message"])
        path = self.folder / LOG
        lines = path.read_text(encoding="utf-8").splitlines()
        words = f"ended with status {status}"
        if problem:
            rank, status = problem["rank"], problem["status"]
            words = f"ended: rank {rank} failed with status {status}"
            if status < 0:
                words = f"ended: rank {rank} was killed by {signal.Signals(-status).name}"
            if status == -signal.SIGKILL:
                words += f" (often the machine ran out of memory: lower {self.knob})"
            lines = [line for line in lines if line.startswith(RANK_PREFIX.format(rank))] or lines
        tail = "\n".join(lines[-LOG_LINES:])
        return f"{self.activity} {words}; the last lines of {shown(path)}:\n{tail}"


def _followed(process: subprocess.Popen[bytes], path: Path) -> Iterator[Event]:
    """Events as they are appended, until the process has ended."""
    position, ended = 0, False
    while not ended:
        ended = process.poll() is not None
        if path.stat().st_size < position:  # the worker has begun a new file
            position = 0
        with path.open("rb") as file:
            file.seek(position)
            for line in file:
                if line.endswith(b"\n"):  # it is whole
                    position += len(line)
                    yield json.loads(line)
        if not ended:
            time.sleep(POLL_SECONDS)


def _log(process: subprocess.Popen[bytes], path: Path) -> None:
    """Writes what the processes print into a file, line by line, without secrets."""
    with path.open("w", encoding="utf-8") as log:
        for line in process.stdout or ():
            log.write(redact(line.decode("utf-8", errors="replace")))
            log.flush()


def main(arguments: list[str]) -> int:
    """torchrun, whose report of a failure is an event."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    folder, *options = arguments
    logging.disable(logging.ERROR)  # what it would say itself
    try:
        run.main(options)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        tell(Path(folder), "failed", rank=rank, status=failure.exitcode)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
