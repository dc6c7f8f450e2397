"""Where a bundled notebook runs: on Kaggle or not, with which GPUs, with internet or not; how much it may leave."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from nbutils.core.errors import UserError
from nbutils.core.files import kaggle_root
from nbutils.core.hardware import Gpu, nvidia_gpus, usable_gpus
from nbutils.core.network import hub_answers
from nbutils.core.run.checkpoints import half_written, newest_whole
from nbutils.core.run.layout import Run
from nbutils.core.run.state import State
from nbutils.core.stages import maker

WHOLE = "all"
"""Stands in place of a stage for the bundle that runs the whole pipeline."""
RUN_TYPE = "KAGGLE_KERNEL_RUN_TYPE"
"""Environment variable of a Kaggle session: `Batch` for a saved version, `Interactive` in the editor."""
SECRET = "HF_TOKEN"
LIMIT = 20_000_000_000
"""Bytes that Kaggle keeps of `/kaggle/working` (kaggle.com/docs/notebooks, technical specifications)."""


@dataclass(frozen=True)
class Environment:
    """`root` holds `input/` and `working/`; None away from Kaggle. `run_type`: Batch, Interactive, or unknown."""

    root: Path | None
    run_type: str
    internet: bool
    gpus: tuple[Gpu, ...]

    @property
    def line(self) -> str:
        """The environment in a line for people."""
        where = f"Kaggle, {self.run_type}" if self.root else "not on Kaggle"
        gpus = " + ".join(gpu.name for gpu in self.gpus) or "no GPU"
        return f"{where}; {gpus}; {'internet' if self.internet else 'no internet'}"


def look_around() -> Environment:
    """Finds out where this is, without initialising CUDA.

    Kaggle is known by its two folders. Variables such as KAGGLE_USERNAME or KAGGLE_KEY say nothing: whoever pushes
    notebooks has them at home too.
    """
    root = kaggle_root()
    there = (root / "input").is_dir() and (root / "working").is_dir()
    return Environment(
        root if there else None,
        os.environ.get(RUN_TYPE) or "unknown",
        hub_answers(),
        nvidia_gpus(),
    )


def check_gpus(gpus: tuple[Gpu, ...], processes: int) -> None:
    """UserError where there are fewer usable GPUs than `processes` asks for (0 takes what there is)."""
    usable = usable_gpus(gpus)
    if len(usable) >= processes:
        return
    old = ", ".join(sorted({gpu.name for gpu in gpus if gpu not in usable}))
    found = f"{len(usable)} usable GPU(s)" + (f" ({old} is too old for today's torch)" if old else "")
    raise UserError(
        f"processes is {processes}, but this session has {found}: choose the accelerator GPU T4 x2 in the session's "
        'options (machine_shape "NvidiaTeslaT4"), or bundle again with -p processes=0, which takes what there is.'
    )


def take_secret() -> bool:
    """Puts HF_TOKEN into the environment where it is attached as a Kaggle secret; public models never need it."""
    if os.environ.get(SECRET):
        return True
    try:
        from kaggle_secrets import UserSecretsClient

        os.environ[SECRET] = UserSecretsClient().get_secret(SECRET)
        return True
    except Exception:  # absent, not attached, or no internet: each has its own exception there
        return False


def used(folder: Path) -> int:
    """Bytes of all files below a folder; one that has two names counts once."""
    found = (path.stat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in found}.values())


def keep_under(working: Path, run: Run, limit: int = LIMIT) -> list[str]:
    """Drops what can be missed until `working` is below the limit, and says what: what is half written, caches, then
    checkpoints.

    Of an unfinished training the newest valid checkpoint stays whatever its size; of a finished one none is needed.
    """
    dropped: list[str] = []
    for candidate in _candidates(working, run):
        if used(working) <= limit:
            break
        shutil.rmtree(candidate)
        dropped.append(str(candidate.relative_to(working)))
    return dropped


def _candidates(working: Path, run: Run) -> list[Path]:
    folder = run.checkpoints_folder
    half = [*run.path.parent.glob(".mirror-*"), *half_written(folder)]
    caches = [path for path in (run.path.parent / ".cache", working / ".cache") if path.is_dir()]
    finished = run.state(maker("model").name) is State.DONE
    newest = None if finished else newest_whole(folder)[0]
    return half + caches + [checkpoint.path for checkpoint in run.checkpoints()[::-1] if checkpoint != newest]
