"""`python -m nbutils kaggle`: its actions and their arguments."""

from __future__ import annotations

import argparse
from pathlib import Path

from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.pipeline.arguments import add_overrides, add_run_dir, profile_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `kaggle bundle`, `kaggle push` and `kaggle wheels`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    bundle = actions.add_parser("bundle", help="write one self-contained notebook a folder, ready to be pushed")
    bundle.add_argument("profile", metavar="PROFILE", help="a YAML file of parameters, params/kaggle_t4x2.yaml for one")
    bundle.add_argument("--out", metavar="DIR", required=True, help="where the folders go")
    bundle.add_argument("--owner", metavar="NAME", required=True, help="your user name on Kaggle")
    add_overrides(bundle)
    add_run_dir(bundle)
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
    stale.add_argument("--accept", action="store_true", help="keep earlier sessions' work that no longer fits")
    stale.add_argument("--force", action="store_true", help="start anew where earlier sessions' work no longer fits")
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
    from nbutils.kaggle.wheels import collect_wheels

    folder = Path(arguments.out).expanduser().absolute()
    wheels = collect_wheels(folder, arguments.python)
    size = sum(path.stat().st_size for path in wheels) / 1e6
    print(f"{len(wheels)} wheels, {size:.1f} MB, in {shown(folder)}. Upload the folder as a Kaggle dataset, and bundle")
    print("with --offline --attach OWNER/DATASET; what `fetch` collects for the profile is attached the same way.")
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from nbutils.kaggle.account import signed_in
    from nbutils.kaggle.push import Pusher, bundle_folders

    if not 0 < arguments.poll < float("inf"):
        raise UserError(f"--poll is {arguments.poll:g}; give the seconds between two looks, more than 0.")
    folders = bundle_folders(Path(arguments.folder).expanduser().absolute())
    Pusher(signed_in(), arguments.follow, arguments.poll).push_all(folders)
    return 0


def _bundle(arguments: argparse.Namespace) -> int:
    from nbutils.kaggle.bundle import describe, write_bundles
    from nbutils.kaggle.options import options_of
    from nbutils.pipeline.parameters import plan

    profile = profile_path(arguments.profile)
    options = options_of(arguments, profile)
    out = Path(arguments.out).expanduser().absolute()
    folders = write_bundles(plan(profile, arguments.overrides, arguments.run_dir), options, out)
    for folder in folders:
        print(describe(folder))
    print(f"One notebook after the other: python -m nbutils kaggle push {shown(out)} --follow")
    print(f"The whole pipeline at once: python -m nbutils kaggle push {shown(folders[-1])} --follow")
    return 0
