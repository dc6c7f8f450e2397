"""Notebook 07 under papermill, in a process of its own that can be killed. Its kernel, the trials and the trainings are
forks: a second to start, not twenty.

Cells of the trials' notebooks run in the trial's process; what a fresh kernel and torchrun do is tested elsewhere.
"""

import asyncio
import multiprocessing
import os
import runpy
import sys
import time

import papermill
import pytest
from IPython import get_ipython
from jupyter_client.provisioning import local_provisioner
from torch.distributed.elastic.utils.distributed import get_free_port

from nbutils.core.errors import UserError
from nbutils.core.files import write_text
from nbutils.core.notebooks import SWEEP, notebooks_folder
from nbutils.core.run.pause import PIPELINE
from nbutils.core.torchrun import LOG, PROGRESS, Torchrun, _followed, end_with
from tests import forked_kernels
from tests.cells import run_cells
from tests.train.forked import LIBRARIES, MODULE


class Fork(multiprocessing.get_context("fork").Process):
    """A fork of this process that runs a function, as far as it has to look like a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, function, output):
        def run():
            os.setsid()
            for stream in (1, 2):
                os.dup2(output, stream)
            sys.stdout = sys.stderr = os.fdopen(os.dup(output), "w", buffering=1)
            end_with(parent)
            sys.exit(function())

        parent = os.getpid()
        super().__init__(target=run)
        self.start()
        os.close(output)
        while os.getpgid(self.pid) != self.pid:  # else a signal to the fork's group would be one to this one
            time.sleep(0.01)

    def poll(self):
        return self.exitcode

    def wait(self):
        self.join()
        return self.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)


def kernel(command, env, cwd=None, **_):
    """What jupyter_client starts."""

    def run():
        asyncio.set_event_loop(asyncio.new_event_loop())  # papermill's is at work
        forked_kernels.kernel(command[command.index("-f") :], env, cwd or os.getcwd())

    return Fork(run, os.dup(2))


def trial(arguments, environment):
    """Starts the command line; what it prints can be read."""
    from nbutils.cli import main

    def run():
        type(get_ipython()).clear_instance()  # that of the kernel
        return main(arguments)

    reading, writing = os.pipe()
    process = Fork(run, writing)
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


def _sweep(parameters, log):
    import torch

    torch.set_num_threads(1)  # a fork has none of the others
    os.environ["OMP_NUM_THREADS"] = "1"
    with open(log, "a", buffering=1) as said, pytest.MonkeyPatch.context() as patch:
        patch.setattr("nbutils.sweep.run.start", trial)
        patch.setattr("nbutils.pipeline.run._execute", cells)
        patch.setattr("nbutils.train.run.Torchrun", Forking)
        patch.setattr(local_provisioner, "launch_kernel", kernel)
        papermill.execute_notebook(notebooks_folder() / SWEEP, None, parameters, kernel_name="python3",
                                   progress_bar=False, stdout_file=said)  # fmt: skip


def start(parameters, log):
    """The process of a sweep with these parameters; what it says is appended to a file."""
    process = LIBRARIES.Process(target=_sweep, args=(parameters, log))
    process.start()
    return process
