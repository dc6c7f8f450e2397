"""The first cell of a bundled notebook: looks around, installs what is missing, and lists what has to be attached.

Until then nothing is imported that the image might lack, or have in a version that is about to be replaced.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nbutils.core import notebooks
from nbutils.core.errors import UserError
from nbutils.core.fetched import local_copy
from nbutils.core.files import PLACE, kaggle_root, resolve, sha256_of_bytes
from nbutils.core.hardware import Gpu, nvidia_gpus, usable_gpus
from nbutils.core.network import hub_answers
from nbutils.core.stages import spec
from nbutils.kaggle import packages
from nbutils.kaggle.packages import SWEEP, WHOLE

if TYPE_CHECKING:
    from nbutils.kaggle.notebook_session import Session

RUN_TYPE = "KAGGLE_KERNEL_RUN_TYPE"
"""Environment variable of a Kaggle session: `Batch` for a saved version, `Interactive` in the editor."""
SECRET = "HF_TOKEN"
NO_SECRET = (
    "checkpoint_mirror is {repo}, and this notebook has no secret HF_TOKEN to write there with: open it in Kaggle's "
    "editor and attach one (Add-ons → Secrets; a token of the Hub that may write), then Save Version or push again; or "
    "bundle without a mirror."
)


@dataclass(frozen=True)
class Bundle:
    """What is known of a bundle where it is made, and in its first cell.

    `recipe` is the profile with its values as a command line has them, `attached` are Kaggle datasets (`owner/slug`),
    `needs` what comes from the hub: kind (`model` or `dataset`), name, revision ('' for any), and what it is for.
    `stale` says what happens to long earlier work that no longer fits: accept, force, or '' to stop there.
    `checkpoint_mirror` is a private Hub repository that gets the newest checkpoint every `mirror_minutes`; empty for
    none. The whole pipeline ends with as many `tune_minutes` of trials of its training's settings.
    """

    owner: str
    profile: str
    recipe: str
    stage: str = WHOLE
    processes: int = 0
    internet: bool = True
    attached: Sequence[str] = ()
    needs: Sequence[tuple[str, str, str, str]] = ()
    stale: str = ""
    checkpoint_mirror: str = ""
    mirror_minutes: float = 30.0
    tune_minutes: float = 0.0

    @property
    def slug(self) -> str:
        """The last part of the notebook's address on Kaggle, of at most 50 characters: what its title becomes there.

        A profile whose name is too long for that, or not in Latin letters, is told apart by a few digits of its hash.
        """
        beside = {WHOLE: "whole-pipeline", SWEEP: notebooks.SWEEP[:-6]}
        file = beside.get(self.stage) or spec(self.stage).file[:-6]
        prefix, words = (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in (self.profile, file))
        longest = 38 - len(words)
        if len(prefix) > longest or not prefix or not self.profile.isascii():
            digits = sha256_of_bytes(self.profile.encode())[:6]
            prefix = f"{prefix[: longest - 7].strip('-')}-{digits}".strip("-")
        return f"smallchat-{prefix}-{words}"

    @property
    def address(self) -> str:
        """The notebook's address on Kaggle: owner/slug."""
        return f"{self.owner}/{self.slug}"

    @property
    def reads(self) -> list[str]:
        """The stages whose notebooks' output it reads; what can take several sessions reads its own, too."""
        if self.stage in (WHOLE, SWEEP):
            return [self.stage]
        stage = spec(self.stage)
        return [*stage.reads, *stage.consults, *([self.stage] if stage.pausable else [])]


@dataclass(frozen=True)
class Environment:
    """`root` holds `input/` and `working/`; None away from Kaggle. `run_type`: Batch, Interactive, or unknown."""

    root: Path | None
    run_type: str
    internet: bool
    gpus: tuple[Gpu, ...]

    def __str__(self) -> str:
        where = f"Kaggle, {self.run_type}" if self.root else "not on Kaggle"
        gpus = " + ".join(gpu.name for gpu in self.gpus) or "no GPU"
        return f"{where}; {gpus}; {'internet' if self.internet else 'no internet'}"


def start(bundle: Bundle) -> Session:
    """The first cell: looks around, checks the GPUs, installs what is missing, and prints what was found.

    UserError where the session cannot do what the profile asks for.
    """
    where = look_around()
    print(f"smallchat, {bundle.stage} of profile {bundle.profile}: {where}")
    if where.root is not None:
        _prepare(bundle, where)
    # The processes that the notebook starts import the unpacked package too.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PLACE), os.environ.get("PYTHONPATH")]))

    import psutil  # only now is everything there that these import

    from nbutils.core.torchrun import PEER_TO_PEER, STARTED
    from nbutils.kaggle.notebook_session import Session

    if where.root is not None:
        # The time budget counts from the start of this kernel: Kaggle's does too, a little earlier.
        os.environ.setdefault(STARTED, str(psutil.Process().create_time()))
        if len(where.gpus) > 1:  # public launch scripts for two T4s switch it off: NCCL hangs with it
            os.environ.setdefault(PEER_TO_PEER, "1")
    if bundle.stage == SWEEP:
        from nbutils.kaggle.sweep_session import SweepSession

        return SweepSession(bundle, where)
    return Session(bundle, where)


def _prepare(bundle: Bundle, where: Environment) -> None:
    check_gpus(where.gpus, bundle.processes)
    mirror = bundle.checkpoint_mirror
    if where.internet and not take_secret() and mirror:
        raise UserError(NO_SECRET.format(repo=mirror))
    wheels = sorted({path.parent for path in (kaggle_root() / "input").glob("**/*.whl")})
    needed = packages.needed(bundle.stage)
    lacking = packages.lacking(needed)
    if not where.internet:
        # Whether the wheels are those that are lacking is for pip to say.
        check_attached(bundle, [] if wheels else [str(requirement) for requirement in lacking])
        os.environ["HF_HUB_OFFLINE"] = "1"
        if bundle.internet:
            print("Note: the hub cannot be reached; only what is attached or built in can be used.")
        if mirror:
            print(f"Note: nothing is sent to checkpoint_mirror {mirror}: there is no internet here.")
    print(packages.install(needed, lacking, where.internet, wheels))


def check_attached(bundle: Bundle, lacking: Sequence[str]) -> None:
    """UserError that lists everything that nobody has attached, with how to add it: packages, models, datasets."""
    absent = [f"package {name}" for name in lacking]
    absent += [
        f"{use} {name}"
        for kind, name, revision, use in bundle.needs
        if local_copy(kind, name, revision) is None and not resolve(name).exists()
    ]
    if absent:
        raise UserError(
            f"There is no internet here, and not attached are: {', '.join(absent)}. Switch Internet on in the "
            "session's options; or run, where there is a network, `python -m nbutils kaggle wheels --out wheels "
            f"--python {packages.PYTHON}` for packages and `python -m nbutils fetch {bundle.recipe} --out fetched` for "
            "models and data, upload each folder as a Kaggle dataset, and attach it (Add Input, or bundle with "
            "--attach OWNER/DATASET)."
        )


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
