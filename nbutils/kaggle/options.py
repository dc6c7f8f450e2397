"""What a bundle is made with: who owns it, what it may use, what is attached; from the command line and the profile."""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.pipeline.parameters import OF_BUNDLES
from nbutils.pipeline.profile import Given, read_override, read_profile

MIRROR_MINUTES = 30.0


@dataclass(frozen=True)
class Options:
    """Who owns the notebooks, whether they may use the internet, which Kaggle datasets (`owner/slug`) are attached.

    `recipe` is the profile with its values as a command line has them. `mirror` is a private Hub repository that gets
    the newest checkpoint every `mirror_minutes`; empty for none. `stale` says what happens to long earlier work that no
    longer fits: accept, force, or '' to stop there.
    """

    owner: str
    profile: str
    recipe: str
    internet: bool = True
    attached: tuple[str, ...] = ()
    mirror: str = ""
    mirror_minutes: float = MIRROR_MINUTES
    stale: str = ""


def options_of(arguments: argparse.Namespace, profile: Path) -> Options:
    """The options of `kaggle bundle`; those on the command line override the profile's own values.

    UserError for what Kaggle or the Hub would refuse.
    """
    given = read_profile(profile) | dict(read_override(text) for text in arguments.overrides)
    values = {name: _checked(name, given[name]) for name in OF_BUNDLES if name in given}
    mirror, minutes = arguments.mirror, arguments.mirror_minutes
    return Options(
        checked_owner(arguments.owner),
        profile.stem,
        shlex.join([_place_of(profile), *(word for text in arguments.overrides for word in ("-p", text))]),
        not arguments.offline and values.get("internet", True),
        tuple(checked_dataset(name) for name in arguments.attach),
        checked_repository(mirror) if mirror is not None else values.get("checkpoint_mirror", ""),
        checked_minutes(minutes) if minutes is not None else values.get("mirror_minutes", MIRROR_MINUTES),
        "accept" if arguments.accept else "force" if arguments.force else "",
    )


def _place_of(profile: Path) -> str:
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
