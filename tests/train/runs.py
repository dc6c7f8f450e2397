"""Small real training runs, started as torchrun starts them."""

import os
import shutil
import sys
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from torch.nn.utils import parameters_to_vector

from nbutils.core.files import read_jsonl, sha256_of_file, write_json
from nbutils.core.hardware import Gpu
from nbutils.core.run.checkpoints import Checkpoint
from nbutils.core.stages import spec
from nbutils.pipeline.parameters import settings_of
from nbutils.train.settings import TrainSettings
from tests.builders import data_folder

SMALL = {
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
"""What a run of a few seconds changes of notebook 02's parameters."""

MACHINE_PARTS = ("tokens_per_second", "mfu", "peak_memory_gib", "seconds", "elapsed", "session")
T4, P100 = Gpu("Tesla T4", (7, 5), 14.7), Gpu("Tesla P100-PCIE-16GB", (6, 0), 15.9)


@cache
def _data():
    """A temporary folder with the data of all small runs."""
    folder = TemporaryDirectory()
    data_folder(Path(folder.name), train=64)
    return folder


def small_settings(run: Path, **changes) -> TrainSettings:
    """Settings of a run of a few seconds; makes the run's data where it is not there."""
    if not (run / "data").is_dir():
        shutil.copytree(Path(_data().name) / "data", run / "data")
    return settings_of(spec("train"), SMALL | {"run_dir": str(run)} | changes)


def logged(run: Path, kind: str) -> list[dict]:
    """The rows of one kind, such as `train`, that a training wrote."""
    return [row for row in read_jsonl(run / "train" / "metrics.jsonl") if row["kind"] == kind]


def history(run: Path) -> list[dict]:
    """The rows of metrics without what depends on the machine's speed."""
    rows = read_jsonl(run / "train" / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in MACHINE_PARTS} for row in rows if row["kind"] != "session"]


def result(run: Path) -> tuple:
    """All that training has made: models, held-out losses, rows of metrics, replies."""
    files = (run / "train" / name for name in ("final/model.safetensors", "last/model.safetensors", "heldout.parquet"))
    hashes = [file.exists() and sha256_of_file(file) for file in files]
    return hashes, history(run), (run / "train" / "samples.jsonl").read_text()


def flat(model: torch.nn.Module) -> torch.Tensor:
    """All weights of a model in one row."""
    return parameters_to_vector(model.parameters()).detach()


def checkpoint(folder: Path, step: int, identity=None, **facts) -> Checkpoint:
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


def wait_for(condition, seconds=120):
    """Returns as soon as `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
