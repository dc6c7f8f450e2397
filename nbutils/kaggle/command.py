"""`python -m nbutils kaggle`: its actions, their arguments, and the options of a bundle."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.kaggle.account import signed_in
from nbutils.kaggle.bundle import MIRROR_MINUTES, Options, describe, write_bundles
from nbutils.kaggle.push import Pusher, bundle_folders
from nbutils.kaggle.wheels import collect_wheels
from nbutils.pipeline.parameters import OF_BUNDLES, plan
from nbutils.pipeline.profile import Given, add_profile, profile_path, read_override, read_profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `kaggle bundle`, `kaggle push` and `kaggle wheels`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    bundle = actions.add_parser("bundle", help="write one self-contained notebook a folder, ready to be pushed")
    add_profile(bundle)
    bundle.add_argument("--out", metavar="DIR", required=True, help="where the folders go")
    bundle.add_argument("--owner", metavar="NAME", required=True, help="your user name on Kaggle")
    bundle.add_argument(
        "--offline",
        action="store_true",
        help="without internet (internet: false in the profile): everything comes from --attach",
    )
    bundle.add_argument(
        "--attach",
        metavar="OWNER/DATASET",
        action="append",
        default=[],
        help="a Kaggle dataset that the notebooks read, such as the folder that `fetch` made",
    )
    bundle.add_argument(
        "--mirror",
        metavar="OWNER/REPO",
        help="checkpoint_mirror: a private Hub repository that gets the newest checkpoint while training",
    )
    bundle.add_argument(
        "--mirror-minutes", metavar="N", type=float, help="minutes between two of them (mirror_minutes; default: 30)"
    )
    stale = bundle.add_mutually_exclusive_group()
    stale.add_argument("--accept", action="store_true", help="keep earlier sessions' work that is stale")
    stale.add_argument("--force", action="store_true", help="start again where earlier sessions' work is stale")
    push = actions.add_parser("push", help="push bundles in order, each when the one before has ended")
    push.add_argument("folder", metavar="DIR", help="the --out of bundle, or one of the folders in it")
    push.add_argument("--follow", action="store_true", help="push again what has paused, and download the results")
    push.add_argument("--poll", metavar="SECONDS", type=float, default=30.0, help="between two looks (default: 30)")
    wheels = actions.add_parser("wheels", help="collect packages to attach, for sessions without internet")
    wheels.add_argument("--out", metavar="DIR", required=True, help="the folder to upload as a Kaggle dataset")
    wheels.add_argument("--python", metavar="VERSION", default="3.12", help="of the image (default: 3.12)")


def main(arguments: argparse.Namespace) -> int:
    """Runs one action; the exit status."""
    return {"bundle": _bundle, "push": _push, "wheels": _wheels}[arguments.action](arguments)


def _wheels(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.out).expanduser().absolute()
    wheels = collect_wheels(folder, arguments.python)
    size = sum(path.stat().st_size for path in wheels) / 1e6
    print(f"{len(wheels)} wheels, {size:.1f} MB, in {shown(folder)}. Upload the folder as a Kaggle dataset, and bundle")
    print("with --offline --attach OWNER/DATASET; what `fetch` collects for the profile is attached the same way.")
    return 0


def _push(arguments: argparse.Namespace) -> int:
    if not 0 < arguments.poll < float("inf"):
        raise UserError(f"--poll is {arguments.poll:g}; give the seconds between two looks, more than 0.")
    folders = bundle_folders(Path(arguments.folder).expanduser().absolute())
    Pusher(signed_in(), arguments.follow, arguments.poll).push_all(folders)
    return 0


def _bundle(arguments: argparse.Namespace) -> int:
    profile = profile_path(arguments.profile)
    options = options_of(arguments, profile)
    out = Path(arguments.out).expanduser().absolute()
    folders = write_bundles(plan(profile, arguments.overrides, arguments.run_dir), options, out)
    for folder in folders:
        print(describe(folder))
    print(f"One notebook after the other: python -m nbutils kaggle push {shown(out)} --follow")
    print(f"The whole pipeline at once: python -m nbutils kaggle push {shown(folders[-1])} --follow")
    return 0


def options_of(arguments: argparse.Namespace, profile: Path) -> Options:
    """The options of `kaggle bundle`; those on the command line override the profile's own values.

    UserError for what Kaggle or the Hub would refuse.
    """
    given = read_profile(profile) | dict(read_override(text) for text in arguments.overrides)
    values = {name: _checked(name, given[name]) for name in OF_BUNDLES if name in given}
    mirror, minutes = arguments.mirror, arguments.mirror_minutes
    return Options(
        owner=checked_owner(arguments.owner),
        profile=profile.stem,
        recipe=shlex.join([_as_written(profile), *(word for text in arguments.overrides for word in ("-p", text))]),
        internet=not arguments.offline and values.get("internet", True),
        attached=tuple(checked_dataset(name) for name in arguments.attach),
        mirror=checked_repository(mirror) if mirror is not None else values.get("checkpoint_mirror", ""),
        mirror_minutes=values.get("mirror_minutes", MIRROR_MINUTES) if minutes is None else checked_minutes(minutes),
        stale="accept" if arguments.accept else "force" if arguments.force else "",
    )


def _as_written(profile: Path) -> str:
    """Where a profile lies, as it may stand in a notebook: below this project, or its name alone."""
    place = shown(profile)
    return profile.name if Path(place).is_absolute() else place


def checked_owner(owner: str) -> str:
    """A Kaggle user name as it stands in addresses. UserError for anything else."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", owner):
        raise UserError(
            f"--owner is {owner!r}; give your user name as it stands in kaggle.com/<name>: letters, digits, hyphens."
        )
    return owner


def checked_dataset(name: str) -> str:
    """A Kaggle dataset's address, with or without a version. UserError for anything else."""
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w-]*(/\d+)?", name):
        raise UserError(f"--attach is {name!r}; give a Kaggle dataset as it stands in its address: OWNER/DATASET.")
    return name


def checked_repository(name: str, where: str = "--mirror") -> str:
    """A Hub repository's name, or '' for none. UserError for anything else."""
    if name and not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise UserError(f"{where} is {name!r}; give a private Hub repository as owner/name.")
    return name


def checked_minutes(value: float, where: str = "--mirror-minutes") -> float:
    """Minutes between two checkpoints that are sent. UserError for none at all."""
    if not 0 < value < float("inf"):
        raise UserError(f"{where} is {value:g}; give the minutes between two checkpoints, more than 0.")
    return value


def _checked(name: str, given: Given) -> Any:
    """A value that a profile gives to its bundles, of the right kind. UserError names its place."""
    value, where = given.value, f"{given.where}: {name}"
    if name == "internet" and isinstance(value, bool):
        return value
    if name == "checkpoint_mirror" and isinstance(value, str):
        return checked_repository(value, where)
    if name == "mirror_minutes" and isinstance(value, int | float) and not isinstance(value, bool):
        return checked_minutes(float(value), where)
    wanted = {"internet": "true or false", "checkpoint_mirror": "owner/name of a private Hub repository"}
    raise UserError(f"{where} is {value!r}; give {wanted.get(name, 'a number of minutes')}.")
