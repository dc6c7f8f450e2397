"""Executing one notebook through papermill: this interpreter's kernel, live output, atomic saves, honest cell marks."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import papermill
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_core.utils import run_sync
from nbclient.exceptions import CellExecutionError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, NotebookExecutionManager, papermill_engines
from papermill.iorw import papermill_io

from nbutils.core.files import project_root, write_text
from nbutils.core.secrets import redact
from nbutils.core.stage import ALLOW_PAUSED
from nbutils.pipeline.job import Job, Stopped
from nbutils.pipeline.processes import MARK, Guardian

NAME = "smallchat"

OUTPUT_SECONDS = 60
"""How long the last output of a finished cell is waited for."""


def execute(job: Job) -> None:
    """Executes a job's notebook, saved as it goes. Raises what papermill, nbclient and the disk raise."""
    job.target.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # our own sentences say it
    papermill_io.register(str(job.target), _AtomicFile())
    papermill_engines.register(NAME, _Engine)
    guardian = Guardian(job.mark)
    try:
        papermill.execute_notebook(
            _literal(job.source),
            _literal(job.target),
            job.parameters,
            engine_name=NAME,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            autosave_cell_every=job.autosave_seconds,
            job=job,
        )
    finally:
        guardian.dismiss()


class _Engine(Engine):
    """papermill's engine with our client; the manager of cells and saves is papermill's own."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: NotebookExecutionManager, kernel_name: str, **kwargs: Any) -> Any:
        job: Job = kwargs["job"]
        job.notebook = nb_man.nb
        client = _Client(
            nb_man,
            kernel_name=kernel_name,
            timeout=job.cell_seconds and math.ceil(job.cell_seconds),
            startup_timeout=60,
            # A cell that is done may write faster than its output can be read; that is no reason to fail it.
            iopub_timeout=OUTPUT_SECONDS,
            raise_on_iopub_timeout=False,
            coalesce_streams=True,
        )
        client.job = job
        try:
            with tempfile.TemporaryFile() as errors:
                try:
                    return client.execute(env=_environment(job), cwd=str(project_root()), stderr=errors)
                finally:
                    job.kernel_said = _last_line(errors)
        except BaseException:
            # papermill would mark every cell completed that was never reached.
            for cell in nb_man.nb.cells:
                if cell.metadata.papermill["status"] == nb_man.PENDING:
                    cell.metadata.papermill["status"] = "not executed"
            raise


class _Client(PapermillNotebookClient):
    """papermill's client that tells the display what goes on and marks a cell failed when its kernel dies."""

    job: Job

    def create_kernel_manager(self) -> Any:
        # A `python3` kernel of the user's may belong to another interpreter; this one has what the notebooks need.
        manager = self.kernel_manager_class(kernel_name="python3", kernel_spec_manager=_ThisInterpreter())
        self.km = manager
        return manager

    async def async_start_new_kernel(self, **kwargs: Any) -> None:
        await super().async_start_new_kernel(**kwargs)
        self.job.kernel_started(self.km.provisioner.pid)

    start_new_kernel = run_sync(async_start_new_kernel)

    async def async_execute_cell(self, *args: Any, **kwargs: Any) -> Any:
        # papermill saves only when a message arrives; a silent cell sends none.
        ticks = asyncio.ensure_future(self._tick())
        try:
            return await super().async_execute_cell(*args, **kwargs)
        finally:
            ticks.cancel()

    execute_cell = run_sync(async_execute_cell)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self.job.autosave_seconds / 2))
            self.nb_man.autosave_cell()

    def papermill_execute_cells(self) -> None:
        """papermill's loop, but a cell whose kernel died or whose time ran out is marked failed, not completed."""
        total = sum(cell.cell_type == "code" for cell in self.nb.cells)
        number = 0
        for index, cell in enumerate(self.nb.cells):
            if cell.cell_type == "code":
                number += 1
                if self.job.stop():
                    raise Stopped
                self.job.cell = number
                self.job.display.cell(number, total, _title(self.nb.cells, index))
            self.nb_man.cell_start(cell, index)
            try:
                self.execute_cell(cell, index)
            except CellExecutionError as error:
                self.nb_man.cell_exception(self.nb.cells[index], cell_index=index, exception=error)
                break
            except BaseException as error:
                self.job.kernel_exit = self._kernel_exit()
                self.nb_man.cell_exception(cell, cell_index=index, exception=error)
                raise
            finally:
                self.nb_man.cell_complete(self.nb.cells[index], cell_index=index)

    def process_message(self, msg: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if msg["msg_type"] == "stream":
            self.job.display.output(msg["content"]["text"])
        return super().process_message(msg, *args, **kwargs)

    def _kernel_exit(self) -> int | None:
        """The kernel's exit status, negative for a signal; None while it lives."""
        process = getattr(self.km and self.km.provisioner, "process", None)
        return None if process is None else process.poll()


class _ThisInterpreter(KernelSpecManager):
    """Knows one kernel: IPython in the interpreter that runs the pipeline."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())


class _AtomicFile:
    """papermill's writer for executed notebooks: whole files only, and no secret in them."""

    def write(self, text: str, path: str) -> None:
        write_text(Path(path), redact(text))

    def read(self, path: str) -> str:
        return Path(path).read_text(encoding="utf-8")

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def pretty_path(self, path: str) -> str:
        return path


def _environment(job: Job) -> dict[str, str]:
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, MARK: job.mark, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment["NBUTILS_NOTEBOOKS"] = str(job.source.absolute().parent)
    environment.pop(ALLOW_PAUSED, None)
    if job.allow_paused:
        environment[ALLOW_PAUSED] = "1"
    return environment


def _last_line(errors: IO[bytes]) -> str:
    """The last line that the kernel's process itself wrote to its standard error, its own log lines left out."""
    errors.seek(0)
    lines = [line.strip() for line in errors.read()[-10_000:].decode(errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("[IPKernelApp]")]
    return lines[-1] if lines else ""


def _title(cells: list[Any], index: int) -> str:
    """What a cell is about: the nearest heading above it."""
    if {"parameters", "injected-parameters"} & set(cells[index].metadata.get("tags", [])):
        return "parameters"
    for cell in reversed(cells[:index]):
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+\s+(.+)$", cell.source, re.MULTILINE)
            if headings:
                return str(headings[-1]).strip()
    with suppress(IndexError):
        return str(cells[index].source.strip().split("\n")[0][:60])
    return ""


def _literal(path: Path) -> str:
    """A path as papermill takes it: it formats paths, so that braces must be doubled."""
    return str(path).replace("{", "{{").replace("}", "}}")
