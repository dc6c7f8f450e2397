"""Starts torchrun as a child process of the notebook and follows what it writes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from nbutils.core import pause
from nbutils.core.children import PARENT
from nbutils.core.errors import UserError
from nbutils.core.files import read_json, shown, write_json, write_text
from nbutils.core.hardware import child_report, choose_processes, nvidia_gpus, usable_gpus
from nbutils.core.secrets import redact
from nbutils.train.preflight import too_few_gpus
from nbutils.train.records import PROGRESS
from nbutils.train.settings import TrainSettings
from nbutils.train.watchdog import EXIT_HANG, RANK_PREFIX, STARTED

LOG = "worker.log"
LOG_LINES = 40
POLL_SECONDS = 0.2
Event = dict[str, Any]


def write_settings(settings: TrainSettings, folder: Path) -> Path:
    """Writes what the worker reads; what an earlier session derived stays in the file until it derives it anew."""
    path = folder / "settings.json"
    record = read_json(path) if path.is_file() else {"schema": 1}
    write_json(path, record | {"settings": settings.model_dump(mode="json")})
    return path


def torchrun_command(settings_file: Path, processes: int) -> list[str]:
    """The command that trains on this machine; on several, replace --standalone by --nnodes and a rendezvous."""
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*program, "-m", "nbutils.train.worker", str(settings_file)]


def worker_environment(processes: int, cores: int, on_gpu: bool) -> dict[str, str]:
    """Environment of the workers: cores shared out evenly, so that their threads do not get in each other's way."""
    threads = max(1, cores // processes)
    own = {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        PARENT: str(os.getpid()),
        STARTED: os.environ.get(STARTED) or str(time.time()),
    }
    return dict(os.environ) | ({} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""}) | own


def events_of(settings: TrainSettings, folder: Path) -> Generator[Event, None, None]:
    """Trains, and yields each event as it happens; the last is `finished` or `paused`.

    Raises UserError with the worker's own sentence, or with the last lines of its log. Ctrl-C, Jupyter's interrupt
    and a pause request of the pipeline end in a checkpoint and a last event `paused`; a second interrupt raises
    KeyboardInterrupt and ends the processes at once. Close the generator to end them before the last event.
    """
    gpus = child_report().gpus if nvidia_gpus() else ()  # torch knows of CUDA_VISIBLE_DEVICES, nvidia-smi does not
    processes = choose_processes(settings.processes, gpus, os.cpu_count() or 1)
    on_gpu = bool(usable_gpus(gpus))
    if problem := too_few_gpus(processes, usable_gpus(gpus)):
        raise UserError(problem)
    command = torchrun_command(write_settings(settings, folder), processes)
    environment = worker_environment(processes, os.cpu_count() or 1, on_gpu)
    try:
        yield from _run(command, environment, settings.run_path, folder)
    except _Hang:
        if not on_gpu:  # peer-to-peer is NCCL's; without it there is nothing to try again
            raise UserError(_ADVICE.format("")) from None
        print("The processes could not reach each other in time; trying once more without peer-to-peer.")
        try:
            yield from _run(command, environment | {"NCCL_P2P_DISABLE": "1"}, settings.run_path, folder)
        except _Hang:
            raise UserError(_ADVICE.format(", also with NCCL_P2P_DISABLE=1")) from None


_ADVICE = (
    "The training processes could not reach each other{}; set processes to 1, or check that the loopback interface is "
    "up and no firewall closes it."
)


class _Hang(Exception):
    """The workers' first exchange did not end."""


def _run(command: list[str], environment: dict[str, str], run: Path, folder: Path) -> Iterator[Event]:
    write_text(folder / PROGRESS, "")
    last: Event = {}
    with (
        _interrupts(run) as interrupts,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
        _logged(process, folder / LOG),
        _ended(process, interrupts),
    ):
        for event in _follow(process, folder / PROGRESS, interrupts):
            last = event
            yield event
    if last.get("event") in ("finished", "paused") and process.returncode == 0:
        return
    log = (folder / LOG).read_text(encoding="utf-8")
    if f"exitcode  : {EXIT_HANG}" in log:
        raise _Hang
    raise UserError(failure(last, log, folder / LOG, process.returncode))


class _Interrupts:
    """What SIGINT asked for while the workers train: a pause at the first, an end at once at the next."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.asked = self.at_once = False

    def take(self, number: int, frame: FrameType | None) -> None:
        """The handler; it prints nothing, since it may have interrupted a print."""
        if self.asked or pause.requested(self.run):
            self.at_once = True
            raise KeyboardInterrupt
        pause.request(self.run)
        self.asked = True


@contextmanager
def _interrupts(run: Path) -> Iterator[_Interrupts]:
    """Takes SIGINT while the block runs, also while whoever iterates over the events prints or draws."""
    interrupts = _Interrupts(run)
    if threading.current_thread() is not threading.main_thread():
        yield interrupts  # another thread is sent no signals
        return
    before = signal.signal(signal.SIGINT, interrupts.take)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def _follow(process: subprocess.Popen[bytes], path: Path, interrupts: _Interrupts) -> Iterator[Event]:
    """Events as they are appended."""
    position, buffer, told = 0, b"", False
    while True:
        ended = process.poll() is not None
        if path.stat().st_size < position:  # the worker begins its file anew
            position, buffer = 0, b""
        with path.open("rb") as file:
            file.seek(position)
            buffer += file.read()
            position = file.tell()
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            yield json.loads(line)
        if interrupts.asked and not told:
            told = True
            print("Pausing: a checkpoint is being written. Interrupt again to stop at once.", flush=True)
        if ended:
            return
        time.sleep(POLL_SECONDS)


@contextmanager
def _logged(process: subprocess.Popen[bytes], path: Path) -> Iterator[None]:
    """Writes what the processes print into a file, line by line, with secrets blotted out."""
    assert process.stdout is not None
    lines = process.stdout

    def copy() -> None:
        with path.open("w", encoding="utf-8") as log:
            for line in lines:
                log.write(redact(line.decode("utf-8", errors="replace")))
                log.flush()

    thread = threading.Thread(target=copy, daemon=True, name="worker-log")
    thread.start()
    try:
        yield
    finally:
        thread.join(timeout=10)


@contextmanager
def _ended(process: subprocess.Popen[bytes], interrupts: _Interrupts) -> Iterator[None]:
    """Whatever happens in the block, no training process is left behind; the workers follow torchrun."""
    try:
        yield
    finally:
        if process.poll() is None and interrupts.at_once:
            # The workers lead sessions of their own, and while they still import torch they follow nobody.
            tree = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGKILL)
            for child in tree:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        elif process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=40)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


def failure(last: Event, log: str, path: Path, status: int) -> str:
    """Why training ended, for people: the worker's own sentence, or which rank failed with its last 40 lines.

    `last` is the last event, `log` what the processes printed, `path` where that lies, `status` torchrun's.
    """
    if last.get("event") == "error":
        return str(last["message"])
    noise = ("torch/distributed/elastic", "torch.distributed.elastic", "FutureWarning")
    lines = log.split('\nTraceback (most recent call last):\n  File "<frozen runpy>')[0].splitlines()
    rank, words = _who(log, status)
    own = [line for line in lines if rank and line.startswith(RANK_PREFIX.format(rank))]
    tail = "\n".join([line for line in own or lines if not any(word in line for word in noise)][-LOG_LINES:])
    return f"{words}; the last lines of {shown(path)}:\n{tail}"


def _who(log: str, status: int) -> tuple[str, str]:
    """The rank that torchrun's report names as the first to fail, and in words how: its signal, or its exit status."""
    report = log.partition("Root Cause (first observed failure)")[2]
    rank, code = re.search(r"rank\s+: (\d+)", report), re.search(r"exitcode\s+: (-?\d+)", report)
    if not rank or not code:
        return "", f"Training ended with status {status}"
    number = int(code[1])
    if number >= 0:
        return rank[1], f"Training ended: rank {rank[1]} failed with status {number}"
    try:
        name = signal.Signals(-number).name
    except ValueError:
        name = f"signal {-number}"
    hint = " (often the machine ran out of memory: lower tokens_per_microbatch)" if name == "SIGKILL" else ""
    return rank[1], f"Training ended: rank {rank[1]} was killed by {name}{hint}"
