"""A sweep in a process of its own that can be killed. Trials and trainings are forks: a second to start, not twenty.

Notebooks' cells run in the trial's process; what a fresh kernel and torchrun do is tested elsewhere.
"""

import os
import runpy
import sys
from functools import partial

import pytest
from torch.distributed.elastic.utils.distributed import get_free_port

from nbutils.core.errors import UserError
from nbutils.core.files import write_text
from nbutils.core.run.pause import PIPELINE
from nbutils.core.torchrun import LOG, PROGRESS, Torchrun, _followed, end_with
from nbutils.sweep.run import Sweeper
from tests.cells import run_cells
from tests.train.forked import LIBRARIES, MODULE


class Fork:
    """A fork of this process that runs a function, as far as it has to look like a `subprocess.Popen`."""

    def __init__(self, function, output):
        self.status, parent = None, os.getpid()
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                os.setsid()
                for stream in (1, 2):
                    os.dup2(output, stream)
                sys.stdout = sys.stderr = os.fdopen(os.dup(output), "w", buffering=1)
                end_with(parent)
                status = function() or 0
            finally:
                os._exit(status)
        os.close(output)

    def poll(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def terminate(self):
        os.kill(self.pid, 15)

    def kill(self):
        os.kill(self.pid, 9)


def trial(arguments, environment):
    """Starts the command line; what it prints can be read."""
    from nbutils.cli import main

    reading, writing = os.pipe()
    process = Fork(partial(main, arguments), writing)
    process.stdout = os.fdopen(reading)
    return process


class Forking(Torchrun):
    """A training in one process, which is a fork."""

    def events(self):
        write_text(self.folder / PROGRESS, "")
        process = Fork(self.rank, os.open(self.folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        yield from _followed(process, self.folder / PROGRESS)
        if process.status:
            raise UserError(self.failure({}, process.status))

    def rank(self):
        os.environ.update(self.environment, RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1",
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=str(get_free_port()))  # fmt: skip
        sys.argv = [MODULE, self.command[-1]]
        sys.modules.pop(MODULE, None)
        runpy.run_module(MODULE, run_name="__main__")


def cells(job):
    """Executes a job's notebook in this process."""
    os.environ[PIPELINE] = job.supervisor.mark
    run_cells(job.source, **job.parameters)


def _sweep(line, log):
    import torch

    from nbutils.cli import main

    torch.set_num_threads(1)  # a fork has none of the others
    os.environ["OMP_NUM_THREADS"] = "1"
    with open(log, "a", buffering=1) as sys.stdout, pytest.MonkeyPatch.context() as patch:
        patch.setattr("nbutils.sweep.command.Sweeper", partial(Sweeper, start=trial))
        patch.setattr("nbutils.pipeline.run._execute", cells)
        patch.setattr("nbutils.train.run.Torchrun", Forking)
        sys.exit(main(["sweep", *line]))


def start(line, log):
    """The process of a sweep; what it says is appended to a file."""
    process = LIBRARIES.Process(target=_sweep, args=(line, log))
    process.start()
    return process
