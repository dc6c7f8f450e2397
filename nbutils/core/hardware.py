"""Decisions that depend on the machine, made from a plain report so that they can be tested without the machine.

As a program (`python -m nbutils.core.hardware`) it prints the report of this machine as JSON: a process that must not
touch CUDA itself asks that one.
"""

from __future__ import annotations

import json  # and no pydantic: a bare image lacks it
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass

from nbutils.core.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """One CUDA device: its name, compute capability and memory in GiB."""

    name: str
    capability: tuple[int, int]
    memory_gib: float


@dataclass(frozen=True)
class DeviceReport:
    """What a machine has: CUDA devices, whether Metal (MPS) works, processor cores, and torch's version with its build.

    `cuda_build` is the CUDA version that torch was built for, empty for a build without.
    """

    gpus: tuple[Gpu, ...] = ()
    mps: bool = False
    cores: int = 1
    torch: str = ""
    cuda_build: str = ""


OLDEST_CAPABILITY = (7, 0)
"""Compute capability below which today's torch ships no kernels (a P100 is 6.0, a T4 7.5)."""


def device_report() -> DeviceReport:
    """Asks torch, in this process; call it only where touching CUDA does no harm (never in a notebook's kernel)."""
    import torch

    gpus = tuple(
        Gpu(p.name, (p.major, p.minor), round(p.total_memory / 2**30, 1))
        for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    )
    mps, cores = torch.backends.mps.is_available(), os.cpu_count() or 1
    return DeviceReport(gpus, mps, cores, torch.__version__, torch.version.cuda or "")


def child_report() -> DeviceReport:
    """The device report, made by a child process: CUDA is not touched in this one.

    UserError where the child fails or takes more than 2 minutes, with its last line: a broken driver shows here.
    """
    program = [sys.executable, "-m", "nbutils.core.hardware"]
    try:
        done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
        raise UserError(
            f"Asking torch for its devices failed ({lines[-1] if lines else 'no message'}); check the GPU's driver and "
            "the installation of torch."
        ) from None
    gpus = tuple(Gpu(**gpu | {"capability": tuple(gpu["capability"])}) for gpu in found["gpus"])
    return DeviceReport(**found | {"gpus": gpus})


def nvidia_gpus() -> tuple[Gpu, ...]:
    """CUDA devices by `nvidia-smi`, without initialising CUDA in this process; none where there is no such program."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = re.findall(r"^(.+), (\d+)\.(\d+), (\d+)$", listed, re.MULTILINE)
    return tuple(Gpu(name, (int(a), int(b)), round(int(memory) / 1024, 1)) for name, a, b, memory in found)


def visible_gpus() -> tuple[Gpu, ...]:
    """CUDA devices that a process started from here would see. torch is asked, in a child process, and only where there
    is a GPU at all: it knows of CUDA_VISIBLE_DEVICES, `nvidia-smi` does not.
    """
    return child_report().gpus if nvidia_gpus() else ()


def usable_gpus(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """The devices that today's torch has kernels for."""
    return tuple(gpu for gpu in gpus if gpu.capability >= OLDEST_CAPABILITY)


def choose_device(report: DeviceReport) -> tuple[str, str]:
    """The device for one process and a line saying why: CUDA of capability 7.0 or newer, else MPS, else CPU.

    Of several CUDA devices the first one that is new enough, by its number: `cuda` would be the very first.
    """
    usable = usable_gpus(report.gpus)
    if usable:
        index = report.gpus.index(usable[0])
        return f"cuda:{index}" if index else "cuda", f"on {usable[0].name}"
    if report.mps:
        return "mps", "on Apple's GPU (MPS)"
    for gpu in report.gpus:
        major, minor = gpu.capability
        return "cpu", f"on the CPU: {gpu.name} (capability {major}.{minor}) is too old for torch"
    return "cpu", "on the CPU: no GPU found"


def choose_precision(asked: str, gpus: tuple[Gpu, ...]) -> str:
    """`fp16`, `bf16` or `fp32` for an asked precision; `auto` takes bf16 from Ampere on, fp16 on older GPUs."""
    if asked != "auto":
        return asked
    usable = usable_gpus(gpus)
    if not usable:
        return "fp32"
    return "bf16" if min(gpu.capability for gpu in usable) >= (8, 0) else "fp16"


def choose_processes(asked: int, gpus: tuple[Gpu, ...], cores: int) -> int:
    """Number of training processes; 0 asks for one per usable GPU, or on a CPU two where there are two cores."""
    if asked > 0:
        return asked
    return len(usable_gpus(gpus)) or min(2, cores)


if __name__ == "__main__":
    print(json.dumps(asdict(device_report())))
