"""Executing one notebook: this interpreter's kernel, live output, whole saves, and a sentence on what went wrong.

nbclient executes, in the way of papermill: the same parameters cell, the same marks on cells and links to an error.
"""

from __future__ import annotations

import errno
import math
import re
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from papermill.engines import NotebookExecutionManager
from papermill.exceptions import PapermillExecutionError
from papermill.execute import prepare_notebook_metadata, raise_for_execution_errors, remove_error_markers
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from nbutils.core.files import Json, project_root, shown, write_text
from nbutils.core.run.stage import ALLOW_PAUSED
from nbutils.core.text import first_line, redact
from nbutils.pipeline.run import Job, StageFailed
from nbutils.pipeline.supervise import MARK, child_environment, guarded

_MEMORY = re.compile(
    r"out of memory|not enough memory|can't allocate memory|cannot allocate memory|std::bad_alloc", re.IGNORECASE
)
_LESS_MEMORY = "use a smaller tokens_per_microbatch, max_length or limit, or close other programs"
_AGAIN = "run the same command again to go on from this stage"


def execute(job: Job) -> None:
    """Executes a job's notebook, saved as it goes. StageFailed says why it did not come to its end."""
    nb = load_notebook_node(str(job.source))
    if job.parameters:
        nb = parameterize_notebook(nb, job.parameters, kernel_name="python3", language="python")
    nb = remove_error_markers(prepare_notebook_metadata(nb, str(job.source), str(job.target)))
    minutes = job.options.cell_minutes
    client = _Client(
        nb,
        # this interpreter's kernel, whatever kernels the user has installed
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[])),
        timeout=minutes and math.ceil(60 * minutes),
        startup_timeout=60,
        # A cell that is done may write faster than its output can be read; that is no reason to fail it.
        iopub_timeout=60,
        raise_on_iopub_timeout=False,
        coalesce_streams=True,
    )
    client.job = job
    client.book = _Book(nb, str(job.target), progress_bar=False, autosave_cell_every=job.autosave_seconds)
    with guarded(job.supervisor.mark), tempfile.TemporaryFile() as errors:
        try:
            client.run(errors)
        except StageFailed:
            raise
        except Exception as error:
            interrupted = isinstance(error, DeadKernelError) or getattr(error, "ename", "") == "KeyboardInterrupt"
            raise StageFailed(client.sentence(error, _last_line(errors)), interrupted) from error


class _Book(NotebookExecutionManager):
    """papermill's marks on a notebook and its cells, written as whole files that hold no secret."""

    def save(self, **kwargs: Any) -> None:
        write_text(Path(self.output_path), redact(nbformat.writes(self.nb)))
        self.last_save_time = self.now()


class _Client(NotebookClient):
    """nbclient's client, which shows output as it comes and saves the notebook while a long cell runs.

    `cell` is the code cell at work, `number` its number from 1, `status` the exit status of a kernel that died.
    """

    km: Any
    kc: Any
    job: Job
    book: _Book
    cell: Any = None
    number = 0
    status: int | None = None

    def process_message(self, msg: Json, cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] == "stream":
            self.job.display.output(msg["content"]["text"])
        return super().process_message(msg, cell, cell_index)

    async def _async_check_alive(self) -> None:  # nbclient calls it every second
        with suppress(OSError):  # the save at the cell's end says it
            self.book.autosave_cell()
        await super()._async_check_alive()

    def run(self, errors: IO[bytes]) -> None:
        """Executes every cell in a kernel whose own standard error goes to `errors`."""
        job, nb = self.job, self.nb
        environment = child_environment(
            **{
                MARK: job.supervisor.mark,
                "NBUTILS_NOTEBOOKS": str(job.source.absolute().parent),
                ALLOW_PAUSED: "1" if job.options.allow_paused else "",
            }
        )
        self.book.notebook_start()
        try:
            self.start_new_kernel(env=environment, cwd=str(project_root()), stderr=errors)
            job.supervisor.kernel_started(self.km.provisioner.pid)
            with self.setup_kernel(cleanup_kc=True):
                told: Any = self.wait_for_reply(self.kc.kernel_info())
                nb.metadata.language_info = told["content"]["language_info"]
                self._cells(nb.cells)
            self.book.notebook_complete()  # not after an error: it marks cells completed that were never reached
        finally:
            self.set_widgets_metadata()
            with suppress(PapermillExecutionError):
                raise_for_execution_errors(nb, None)  # which adds links to the cell at fault
            self.book.save()

    def _cells(self, cells: list[Any]) -> None:
        total = sum(cell.cell_type == "code" for cell in cells)
        title = ""  # what a cell is about: the nearest heading above it
        for index, cell in enumerate(cells):
            if cell.cell_type == "markdown":
                title = [title, *re.findall(r"^#+\s+(.+?)\s*$", cell.source, re.MULTILINE)][-1]
            if cell.cell_type == "code":
                if self.job.supervisor.stops:
                    raise StageFailed(f"{self.job.source.name} was stopped between two cells.", interrupted=True)
                self.cell, self.number = cell, self.number + 1
                self.job.display.flush()
                self.job.display.say(f"  cell {self.number}/{total} · {title}")
            self.book.cell_start(cell)
            try:
                self.execute_cell(cell, index)
            except Exception:
                self.status = self.km.provisioner.process.poll()
                self.book.cell_exception(cell)
                raise
            finally:
                self.book.cell_complete(cell)

    def sentence(self, error: Exception, said: str) -> str:
        """What ended the notebook. An error that is our own mistake is raised again."""
        name, folder = self.job.source.name, self.job.target.parent
        where = f"{name}, code cell {self.number}"
        if isinstance(error, CellExecutionError):
            return cell_sentence(error.ename, error.evalue, f"{name}, cell In [{self.cell.execution_count}]", folder)
        if isinstance(error, DeadKernelError):
            return dead_kernel(where, self.status, said)
        if isinstance(error, CellTimeoutError):
            return f"{where} took longer than --cell-minutes {self.job.options.cell_minutes:g} allows."
        if isinstance(error, OSError):
            return _full_disk(folder) if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"{where}: {error}."
        if self.number:
            raise error
        return (
            f"The kernel for {name} did not start ({said or first_line(error)}): "
            f"check that `{sys.executable} -m ipykernel --version` works."
        )


def cell_sentence(name: str, value: str, where: str, folder: Path) -> str:
    """For an exception in a cell, by its type's name and its text."""
    first = value and first_line(value)
    if name == "UserError":  # the last lines of a log may follow; the notebook holds them
        return f"{where}: {first.rstrip(':.')}."
    if name == "SystemExit":
        return f"{where} called sys.exit({value}): a stage ends with its last cell; remove the call."
    if name == "KeyboardInterrupt":
        return f"{where} was interrupted; {_AGAIN}."
    if name in ("MemoryError", "OutOfMemoryError") or _MEMORY.search(value):
        return f"{where}: memory ran out ({first or name}); {_LESS_MEMORY}."
    if f"[Errno {errno.ENOSPC}]" in value or "No space left on device" in value:
        return f"{where}: {_full_disk(folder)}"
    return f"{where} raised {name}: {first}".rstrip(" :.") + "."


def dead_kernel(where: str, status: int | None, said: str) -> str:
    """For a kernel that died under a cell, by its exit status and its last words."""
    how = f"the kernel died with exit status {status}"
    if status and status < 0:
        how = f"the kernel was ended by {signal.Signals(-status).name}"
        if -status == signal.SIGKILL:
            how += f" (often the system's answer to a lack of memory: {_LESS_MEMORY})"
    words = f", saying '{said}'" if said else ""
    return f"{where}: {how}{words}; {_AGAIN}."


def _last_line(errors: IO[bytes]) -> str:
    """The last line that the kernel's process itself wrote to its standard error, its own log lines left out."""
    errors.seek(0)
    lines = map(str.strip, errors.read()[-10_000:].decode(errors="replace").splitlines())
    return ["", *(line for line in lines if line and not line.startswith("[IPKernelApp]"))][-1]


def _full_disk(folder: Path) -> str:
    return f"the disk of {shown(folder)} is full: free some space and run the same command again."
