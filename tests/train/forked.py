"""Training ranks as forks of one Python that has the libraries loaded: a second to start instead of ten for each.

They are what torchrun starts (same program, same environment variables), and end as it ends them: where one fails, the
others are stopped. What torchrun itself does is tested with torchrun (`tests/train/test_launch.py`, `tests/faults`).
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from subprocess import CompletedProcess

from torch.distributed.elastic.utils.distributed import get_free_port
from torch.multiprocessing import ProcessExitedException, start_processes

from nbutils.train.settings import TrainSettings
from tests.train.runs import written

MODULE, WITH_FAULTS = "nbutils.train.worker", "tests.faults.worker_with_faults"
LIBRARIES = multiprocessing.get_context("forkserver")
LIBRARIES.set_forkserver_preload([MODULE])
SECONDS = 240
"""How long a training may take."""


def forked(
    settings: TrainSettings, processes: int, module=MODULE, *, fails=False, **environment: str
) -> CompletedProcess[str]:
    """Runs the training program to its end, which is a good one unless it `fails`. Standard error has all output.

    With a FAULT in the environment it is the program with faults, and may end as it likes.
    """
    fault = "FAULT" in environment
    module = WITH_FAULTS if fault else module
    request = written(settings)
    common = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port())} | environment
    with tempfile.NamedTemporaryFile("r") as log:  # not in the run folder: a test may fill its disk
        arguments = (module, str(request), common, log.name)
        ranks = start_processes(_rank, arguments, processes, join=False, daemon=True, start_method="forkserver")
        deadline, status = time.monotonic() + SECONDS, 0
        try:
            while not ranks.join(1):
                assert time.monotonic() < deadline, f"training did not end in {SECONDS} s: {log.read()[-3000:]}"
        except ProcessExitedException:  # the others were stopped, as torchrun does it
            status = 1
        said = log.read()
        assert fault or fails == bool(status), said[-3000:]
        return CompletedProcess([module], status, "", said)


def _rank(number, module, request, environment, output):
    """One rank: what it prints goes to the end of that file."""
    os.environ.clear()
    os.environ.update(environment | {"RANK": str(number), "LOCAL_RANK": str(number)})
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = [module, request]
    sys.modules.pop(module, None)  # so that the program starts afresh, and is not warned about
    runpy.run_module(module, run_name="__main__")
