"""Scoring in several processes: torchrun is started, its lines are passed on, and nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nbutils.core.children import PARENT
from nbutils.core.errors import UserError
from nbutils.core.files import shown, write_json, write_text
from nbutils.core.secrets import redact

SAID = "evaluate: "
"""Stands before the lines of a worker that are meant for people."""
GRACE_SECONDS = 40.0
"""How long torchrun may take to end its workers; it gives them 30."""
LOG_LINES = 2000


def fill_cache(
    settings: Any, folder: Path, data: Path, trained: Path, processes: int, say: Callable[[str], None]
) -> None:
    """Has `nbutils.evaluate.worker` put all answers into the cache: lm-eval shards each task's items by rank.

    UserError with a worker's own sentence, or with the place of its log. An interruption ends the workers first.
    """
    request = folder / "worker.json"
    write_json(request, {"settings": settings.model_dump(mode="json"), "folder": str(folder), "data": str(data),
                         "trained": str(trained)})  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
               "-m", "nbutils.evaluate.worker", str(request)]  # fmt: skip
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", PARENT: str(os.getpid())}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env=environment, start_new_session=True,
    )  # fmt: skip
    log: deque[str] = deque(maxlen=LOG_LINES)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said, found, text = line.rstrip("\n").partition(SAID)
            if found and not said:
                say(text)
            else:
                log.append(line)
        process.wait()
    finally:
        _end(process)
        request.unlink(missing_ok=True)
    if process.returncode:
        raise UserError(_failure(log, folder / "worker.log", processes))


def _end(process: subprocess.Popen[str]) -> None:
    """Ends torchrun, which ends its workers: they have sessions of their own, so no signal to a group reaches them."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    if process.stdout is not None:
        process.stdout.close()


def _failure(log: Iterable[str], path: Path, processes: int) -> str:
    """A worker's own sentence, or where its log lies."""
    sentences = [line.partition("UserError: ")[2].strip() for line in log if "UserError: " in line]
    if sentences:
        return sentences[0]
    write_text(path, redact("".join(log)))
    return f"Scoring with {processes} processes failed; its log is {shown(path)}."
