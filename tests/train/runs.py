"""Small real training runs, started as torchrun starts them."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from torch.nn.utils import parameters_to_vector

from nbutils.core.files import read_jsonl, write_json
from nbutils.core.hardware import Gpu
from nbutils.core.notebooks import notebook_path, parameters
from nbutils.core.run.checkpoints import Checkpoint
from nbutils.core.stages import spec
from nbutils.train.settings import TrainSettings
from tests.builders import data_folder

SMALL = {name: each.default for name, each in parameters(notebook_path(spec("train"))).items() if name != "run_dir"} | {
    "max_length": 256,
    "seed": 1,
    "learning_rate": 0.003,
    "warmup_fraction": 0.1,
    "max_steps": 12,
    "tokens_per_step": 600,
    "tokens_per_microbatch": 300,
    "supervise": "assistant",
    "trainer_options": {},
    "eval_steps": 6,
    "sample_prompts": ["Hi"],
    "log_steps": 1,
    "checkpoint_steps": 4,
    "checkpoints_kept": 2,
    "processes": 2,
}
"""The parameters of notebook 02, for a run of a few seconds."""

T4, P100 = Gpu("Tesla T4", (7, 5), 14.7), Gpu("Tesla P100-PCIE-16GB", (6, 0), 15.9)


@cache
def _data() -> TemporaryDirectory[str]:
    folder = TemporaryDirectory()
    data_folder(Path(folder.name), train=64)
    return folder


def small_settings(run: Path, **changes) -> TrainSettings:
    """Settings of a run of a few seconds; makes the run's data where it is not there."""
    if not (run / "data").is_dir():
        shutil.copytree(Path(_data().name) / "data", run / "data")
    return TrainSettings.checked(SMALL | {"run_dir": str(run)} | changes)


def logged(run: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of one kind, such as `train`, that a training wrote."""
    return [row for row in read_jsonl(run / "train" / "metrics.jsonl") if row["kind"] == kind]


def flat(model: torch.nn.Module) -> torch.Tensor:
    """All weights of a model in one row."""
    return parameters_to_vector(model.parameters()).detach()


def checkpoint(folder: Path, step: int, identity: dict[str, Any] | None = None, **facts) -> Checkpoint:
    """A made-up checkpoint of a step, whole, in a folder of checkpoints."""
    made = Checkpoint.at(folder, step)
    made.partial.mkdir(parents=True)
    (made.partial / "weights").write_bytes(b"w" * 100)
    made.seal(identity or {}, {"step": step} | facts)
    return made


def flip_a_bit(file: Path):
    """Of the last byte: the file is damaged, and as long as before."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def written(settings: TrainSettings) -> Path:
    """The worker's settings file, as notebook 02 writes it."""
    path = settings.run_path / "train" / "settings.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"settings": settings.model_dump(mode="json")})
    return path


def torchrun(settings: TrainSettings, processes: int, *options: str, **environment: str) -> psutil.Popen:
    """Starts the worker as its module's first line says."""
    line = [sys.executable, "-m", "torch.distributed.run", *(options or ["--standalone"]),
            f"--nproc-per-node={processes}", "-m", "nbutils.train.worker", str(written(settings))]  # fmt: skip
    return psutil.Popen(line, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)


def wait_for(condition: Callable[[], object], seconds: float = 120):
    """Returns as soon as the condition is met."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
