"""`python -m nbutils sweep`: trials of a recipe, and which of them can be told apart."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from nbutils.core.errors import UserError
from nbutils.pipeline.display import Display
from nbutils.pipeline.parameters import read_override
from nbutils.sweep.run import Sweeper
from nbutils.sweep.settings import MOST_TRIALS, SweepSettings, read_values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sweep`."""
    parser.add_argument("profile", metavar="PROFILE", help="a YAML file of parameters, such as params/demo.yaml")
    add_swept(parser, "-p")
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder of the sweep; the same one goes on")
    parser.add_argument(
        "--minutes", metavar="M", type=float, default=0.0, help="pause after so long (default: budget_minutes)"
    )
    parser.add_argument("--take", metavar="FILE", default="", help="write the winning values as a profile")
    stale = parser.add_mutually_exclusive_group()
    for option, text in (("--accept", "keep trials that are stale"), ("--force", "start trials that are stale again")):
        stale.add_argument(option, dest="options", action="append_const", const=option, default=[], help=text)
    parser.add_argument("--explain", action="store_true", help="say what would run, and run nothing")
    parser.add_argument("--yes", action="store_true", help=f"allow more than {MOST_TRIALS} trials")


def add_swept(parser: argparse.ArgumentParser, option: str) -> None:
    """What a sweep tries, with the option for a parameter's values."""
    parser.add_argument(
        option,
        metavar="NAME=V1,V2",
        action="append",
        default=[],
        dest="swept",
        help="values of a parameter, YAML each; one value sets it for all trials",
    )
    parser.add_argument("--seeds", metavar="N", type=int, default=3, help="trainings of each recipe (default: 3)")
    parser.add_argument(
        "--guard", metavar="TASK:ITEMS", default="", help="score the base and the leading recipes on tasks"
    )


def settings_by(arguments: argparse.Namespace, **others: Any) -> SweepSettings:
    """What a command with the arguments of `add_swept` asks for."""
    values = {name: given.value for name, given in map(read_override, getattr(arguments, "overrides", []))}
    swept: dict[str, list[Any]] = {}
    for name, found in map(read_values, arguments.swept):
        if name in swept or name in values:
            raise UserError(f"{name} is given twice: give all of its values at once.")
        if len(found) > 1:
            swept[name] = found
        else:
            values[name] = found[0]
    asked = {"profile": arguments.profile, "seeds": arguments.seeds, "guard": arguments.guard}
    return SweepSettings.checked({"values": values, "sweep": swept, **asked, **others})


def sweeper_by(arguments: argparse.Namespace, say: Callable[[str], None]) -> Sweeper:
    """The sweep that the arguments of `sweep` ask for."""
    settings = settings_by(arguments, run_dir=arguments.out, minutes=arguments.minutes, take=arguments.take)
    return Sweeper(settings.plan(arguments.yes), say, arguments.options)


def main(arguments: argparse.Namespace) -> int:
    """Runs or explains a sweep; the exit status is 1 where every trial failed."""
    say = Display().say
    sweeper = sweeper_by(arguments, say)
    if arguments.explain:
        sweeper.explain()
        return 0
    found = sweeper.go()
    if found.verdict.rows:
        say(found.table().to_string(index=False))
    for sentence in found.sentences:
        say(sentence)
    return int(len(found.failed) == len(found.sweep.trials))
