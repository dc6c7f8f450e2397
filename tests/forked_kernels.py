"""Notebook kernels as forks of one Python that has the libraries loaded: they start in a second instead of ten.

Everything else about them is real: their own process, its protocol, its output. That a fresh Python starts as a kernel
is tested in `tests/faults`, and by `make demo`.
"""

import os
import signal
import time

import pytest
from jupyter_client.provisioning import local_provisioner

from tests.train.forked import LIBRARIES


class Kernel:
    """The part of `subprocess.Popen` that jupyter_client asks for."""

    stdin = stdout = stderr = None

    def __init__(self, command: list[str], env: dict[str, str], cwd: str | None = None, **_):
        arguments = command[command.index("-f") :]
        self._process = LIBRARIES.Process(target=kernel, args=(arguments, env, cwd or os.getcwd()), daemon=True)
        self._process.start()
        self.pid = self._process.pid
        while os.getpgid(self.pid) != self.pid:  # else a signal to the kernel's group would be one to this one
            time.sleep(0.01)

    def poll(self) -> int | None:
        """The exit status, once there is one."""
        return self._process.exitcode

    def wait(self) -> int | None:
        """The same, waited for."""
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int):
        """Sends a signal."""
        os.kill(self.pid, number)


def kernel(arguments: list[str], environment: dict[str, str], folder: str):
    """Is a kernel, in a session of its own."""
    if os.getpgrp() != os.getpid():
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance(argv=arguments)


def use(patch: pytest.MonkeyPatch):
    """From now on kernels are forks."""
    patch.setattr(local_provisioner, "launch_kernel", Kernel)
