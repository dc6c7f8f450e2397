"""What went wrong, in one sentence: from the exceptions of papermill, nbclient, the kernel and the disk."""

from __future__ import annotations

import errno
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

from nbutils.core.files import shown
from nbutils.core.pause import StagePaused
from nbutils.pipeline.job import Job, Stopped
from nbutils.pipeline.processes import oom_kills

_MEMORY = re.compile(
    r"out of memory|not enough memory|can't allocate memory|cannot allocate memory|std::bad_alloc", re.IGNORECASE
)


def sentence(error: Exception, job: Job, run: Path, oom_before: int) -> str:
    """What ended the execution of a job's notebook. Errors that are our own mistakes are raised again."""
    notebook = job.source.name
    if isinstance(error, PapermillExecutionError):
        return cell_sentence(error.ename, error.evalue, error.exec_count, notebook, run)
    if isinstance(error, DeadKernelError):
        return dead_kernel(job, oom_kills() > oom_before)
    if isinstance(error, CellTimeoutError):
        minutes = (job.cell_seconds or 0) / 60
        return f"{notebook}, code cell {job.cell} took longer than --cell-minutes {minutes:g} allows."
    if isinstance(error, OSError):
        return disk(error, run)
    if job.cell is None:
        said = job.kernel_said or _first_line(str(error)) or type(error).__name__
        return (
            f"The kernel for {notebook} did not start ({said}): "
            f"check that `{sys.executable} -m ipykernel --version` works."
        )
    raise error


def by_signal(error: Exception | None) -> bool:
    """Whether an error is what a signal to the pipeline brings about, and not one of the notebook's own."""
    if isinstance(error, PapermillExecutionError):
        return str(error.ename) == "KeyboardInterrupt"
    return error is None or isinstance(error, DeadKernelError | Stopped)


def is_pause(error: Exception) -> bool:
    """Whether an error is how a stage ends its notebook after it has paused."""
    return getattr(error, "ename", type(error).__name__) == StagePaused.__name__


def early_exit(job: Job) -> str:
    """For a notebook that ended without an error and without finishing its stage."""
    for cell in job.notebook.cells if job.notebook else []:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return cell_sentence(output.ename, output.evalue, cell.execution_count, job.source.name, job.target)
    return f"{job.source.name} ran to its end without finishing its stage: its last cell must call stage.finish()."


def cell_sentence(name: str, value: str, count: Any, notebook: str, folder: Path) -> str:
    """For an exception in a cell, by its type's name and its text."""
    where = f"{notebook}, cell In [{count}]"
    if name in ("UserError", "StagePaused"):
        first = _first_line(value)  # the last lines of a log may follow; the notebook holds them
        return f"{where}: {first[:-1] + '.' if first.endswith(':') else first}"
    if name == "SystemExit":
        return f"{where} called sys.exit({value}): a stage ends with its last cell; remove the call."
    if name == "KeyboardInterrupt":
        return f"{where} was interrupted; run the same command again to go on from this stage."
    if name in ("MemoryError", "OutOfMemoryError") or _MEMORY.search(value):
        return f"{where}: memory ran out ({_first_line(value) or name}); {_LESS_MEMORY}."
    if re.search(rf"\[Errno {errno.ENOSPC}\]|No space left on device", value):
        return f"{where}: {full_disk(folder)}"
    text = f"{where} raised {name}: {_first_line(value)}".removesuffix(": ")
    return text if text.endswith((".", "!", "?")) else f"{text}."


def dead_kernel(job: Job, killed_for_memory: bool) -> str:
    """For a kernel that died under a cell."""
    where = f"{job.source.name}, code cell {job.cell}"
    again = "run the same command again to go on from this stage"
    if killed_for_memory:
        return f"{where}: the system ended the kernel because memory ran out; {_LESS_MEMORY}."
    said = f", saying '{job.kernel_said}'" if job.kernel_said else ""
    if job.kernel_exit is not None and job.kernel_exit < 0:
        name = signal.Signals(-job.kernel_exit).name
        hint = f" (often the system's answer to a lack of memory: {_LESS_MEMORY})" if name == "SIGKILL" else ""
        return f"{where}: the kernel was ended by {name}{hint}{said}; {again}."
    status = "" if job.kernel_exit is None else f" with exit status {job.kernel_exit}"
    return f"{where}: the kernel died{status}{said}; {again}."


def disk(error: OSError, folder: Path) -> str:
    """For an error of the file system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return full_disk(folder)
    name = f" {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{name}: check that {shown(folder)} can be read and written."


def full_disk(folder: Path) -> str:
    """For a disk with nothing left."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free / 2**20
    return f"the disk of {shown(folder)} is full ({free:.0f} MiB free): free some space and run the same command again."


_LESS_MEMORY = "use a smaller tokens_per_microbatch, max_length or limit, or close other programs"


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[0][:500] if lines else ""
