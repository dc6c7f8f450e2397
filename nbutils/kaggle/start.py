"""The first cell of a bundled notebook: looks around, and installs what is missing.

Until then nothing is imported that the image might lack, or have in a version that is about to be replaced.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nbutils.core.errors import UserError
from nbutils.kaggle import attached, packages, place

if TYPE_CHECKING:
    from nbutils.kaggle.session import Session

STARTED = "NBUTILS_STARTED"
REQUIREMENTS = "requirements.txt"
"""In the archive: what smallchat needs, a requirement a line."""
NO_SECRET = (
    "checkpoint_mirror is {repo}, and this notebook has no secret HF_TOKEN to write there with: open it in Kaggle's "
    "editor and attach one (Add-ons → Secrets; a token of the Hub that may write), then Save Version or push again; or "
    "bundle without a mirror."
)
FOLDER = Path(__file__).resolve().parents[2]
"""Where the archive was unpacked."""


def start(
    *,
    stage: str,
    profile: str,
    address: str,
    processes: int,
    internet: bool,
    recipe: str,
    needs: Sequence[attached.Need] = (),
    stale: str = "",
    checkpoint_mirror: str = "",
    mirror_minutes: float = 30.0,
) -> Session:
    """The first cell: looks around, checks the GPUs, installs what is missing, and prints what was found.

    `recipe` is the profile with its values as a command line has them, `needs` what comes from the hub, `stale`
    (accept, force or '') what happens to earlier work that no longer fits.
    UserError where the session cannot do what the profile asks for.
    """
    where = place.look_around()
    print(f"smallchat, {stage} of profile {profile}: {where.line}")
    if where.root is None:
        _share_package()
        return _session(stage, profile, address, where, stale, recipe)
    place.check_gpus(where.gpus, processes)
    has_secret = where.internet and place.take_secret()
    if checkpoint_mirror and where.internet and not has_secret:
        raise UserError(NO_SECRET.format(repo=checkpoint_mirror))
    wheels = sorted(path.parent for path in (where.root / "input").glob(f"**/{packages.WHEELS}"))
    lines = (FOLDER / REQUIREMENTS).read_text(encoding="utf-8").splitlines()
    before = packages.inspect(packages.needed(lines, stage))
    if not where.internet:
        attached.check_attached(needs, before, recipe, wheels)
    everything = packages.live_versions()
    after = packages.install(before, everything, where.internet, wheels)
    print(packages.table(before, after, everything))
    if internet and not where.internet:
        print("Note: the hub cannot be reached; only what is attached or built in can be used.")
    if not where.internet:
        os.environ["HF_HUB_OFFLINE"] = "1"
    elif has_secret:
        print("HF_TOKEN is taken from the notebook's secrets.")
    _share_package()
    _start_clock()
    session = _session(stage, profile, address, where, stale, recipe)
    if checkpoint_mirror and not where.internet:
        print(f"Note: nothing is sent to checkpoint_mirror {checkpoint_mirror}: there is no internet here.")
    elif checkpoint_mirror:
        from nbutils.kaggle.mirror import Mirror

        session.mirror = Mirror(checkpoint_mirror, mirror_minutes)
    return session


def _session(stage: str, profile: str, address: str, where: place.Place, stale: str, recipe: str) -> Session:
    from nbutils.kaggle.session import Session

    return Session(stage, profile, address, where, stale, recipe)


def _share_package() -> None:
    """Lets the processes that the notebook starts import the unpacked package too."""
    paths = [str(FOLDER), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))


def _start_clock() -> None:
    """The time budget counts from the start of this kernel: Kaggle's does too, a little earlier."""
    import psutil

    os.environ.setdefault(STARTED, str(psutil.Process().create_time()))
