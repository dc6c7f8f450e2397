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
from nbutils.kaggle.bundle import write_bundles, write_sweep
from nbutils.kaggle.carry_over import ACCEPT, FORCE
from nbutils.kaggle.packages import collect_wheels, required
from nbutils.kaggle.push import Pusher, bundle_folders
from nbutils.kaggle.start import Bundle
from nbutils.pipeline.parameters import (
    OF_BUNDLES,
    Given,
    add_profile,
    planned_by,
    profile_path,
    read_override,
    read_profile,
)
from nbutils.sweep.command import add_swept, settings_by


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `kaggle bundle`, `kaggle push` and `kaggle wheels`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    bundle = actions.add_parser(
        "bundle", help="write a folder with one self-contained notebook each, ready to be pushed"
    )
    add_profile(bundle)
    bundle.add_argument("--out", type=_path, metavar="DIR", required=True, help="where the folders go")
    bundle.add_argument("--owner", metavar="NAME", required=True, help="your user name on Kaggle")
    bundle.add_argument(
        "--offline",
        action="append_const",
        dest="overrides",
        const="internet=false",
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
        action="append",
        dest="overrides",
        type="checkpoint_mirror={!r}".format,
        help="checkpoint_mirror: a private Hub repository that gets the newest checkpoint every mirror_minutes (30)",
    )
    add_swept(bundle, "--sweep")
    stale = bundle.add_mutually_exclusive_group()
    keep, again = "keep earlier sessions' work that is stale", "start again where earlier sessions' work is stale"
    stale.add_argument("--accept", dest="stale", action="store_const", const=ACCEPT, default="", help=keep)
    stale.add_argument("--force", dest="stale", action="store_const", const=FORCE, help=again)
    push = actions.add_parser("push", help="push bundles in order, each when those that it reads have ended")
    push.add_argument("folder", type=_path, metavar="DIR", help="the --out of bundle, or one of the folders in it")
    push.add_argument("--follow", action="store_true", help="push again what has paused, and download the results")
    wheels = actions.add_parser("wheels", help="collect packages to attach, for sessions without internet")
    wheels.add_argument(
        "--out", type=_path, metavar="DIR", required=True, help="the folder to upload as a Kaggle dataset"
    )
    wheels.add_argument("--python", metavar="VERSION", default="3.12", help="of the image (default: 3.12)")


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def main(arguments: argparse.Namespace) -> int:
    """Runs one action; the exit status."""
    match arguments.action:
        case "wheels":
            wheels = collect_wheels(arguments.out, arguments.python, required())
            print(
                f"{len(wheels)} wheels are in {shown(arguments.out)}. Upload the folder as a Kaggle dataset, and\n"
                "bundle with --offline --attach OWNER/DATASET; what `fetch` collects for the profile is attached the\n"
                "same way."
            )
        case "push":
            folders = bundle_folders(arguments.folder)
            Pusher(signed_in(), arguments.follow).push_all(folders)
        case "bundle" if arguments.swept:
            run_dir = arguments.run_dir or f"runs/{profile_path(arguments.profile).stem}-sweep"
            settings, bundle = settings_by(arguments, run_dir=run_dir, minutes=0, take=""), bundle_of(arguments)
            if bundle.stale or bundle.checkpoint_mirror:
                raise UserError("The bundle of a sweep has no --accept, --force or checkpoint_mirror: take them out.")
            folder = shown(write_sweep(settings, bundle, arguments.out))
            print(f"{folder}\nRun it: python -m nbutils kaggle push {folder} --follow")
        case "bundle":
            folders = write_bundles(planned_by(arguments), bundle_of(arguments), arguments.out)
            print(*map(shown, folders), sep="\n")
            print(f"One notebook after the other: python -m nbutils kaggle push {shown(arguments.out)} --follow")
            print(f"The whole pipeline at once: python -m nbutils kaggle push {shown(folders[-1])} --follow")
    return 0


def bundle_of(arguments: argparse.Namespace) -> Bundle:
    """What `kaggle bundle` is told; its flags, and `-p`, override the profile's own values.

    UserError for what Kaggle or the Hub would refuse.
    """
    profile = profile_path(arguments.profile)
    given = read_profile(profile) | dict(read_override(text) for text in arguments.overrides)
    path = shown(profile)
    name = profile.name if Path(path).is_absolute() else path  # no place on this machine goes into a notebook
    return Bundle(
        owner=_checked("owner", Given(arguments.owner, "--owner")),
        profile=profile.stem,
        recipe=shlex.join([name, *(word for text in arguments.overrides for word in ("-p", text))]),
        attached=[_checked("dataset", Given(name, "--attach")) for name in arguments.attach],
        stale=arguments.stale,
        **{name: _checked(name, given[name]) for name in OF_BUNDLES if name in given},
    )


VALID = {
    "owner": (str, r"[A-Za-z0-9][\w-]*", "your user name as in kaggle.com/<name>: letters, digits, hyphens"),
    "dataset": (str, r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w-]*(/\d+)?", "its address on Kaggle: OWNER/DATASET"),
    "internet": (bool, "True|False", "true or false"),
    "checkpoint_mirror": (
        str,
        r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)?",
        "owner/name of a private Hub repository",
    ),
    "mirror_minutes": (int | float, r"[\d.]*[1-9][\d.e+-]*", "the minutes between two checkpoints, more than 0"),
    "tune_minutes": (int | float, r"[\d.]+", "the minutes of trials at the end, or 0 for none"),
}
"""What the commands can be told: the type and the form of what is right, and what to give."""


def _checked(name: str, given: Given) -> Any:
    kind, form, wanted = VALID[name]
    if not isinstance(given.value, kind) or not re.fullmatch(form, str(given.value)):
        raise UserError(f"{given.where}: {name} is {given.value!r}; give {wanted}.")
    return given.value
