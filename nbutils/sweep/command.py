"""`python -m nbutils sweep`: trials of a recipe, and which of them can be told apart."""

from __future__ import annotations

import argparse

from nbutils.core.errors import UserError
from nbutils.pipeline.display import Display
from nbutils.pipeline.parameters import Given, profile_path, read_override, read_profile
from nbutils.pipeline.run import minutes
from nbutils.sweep.plan import MOST_TRIALS, Sweep, plan_sweep, read_values
from nbutils.sweep.run import Sweeper


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sweep`."""
    parser.add_argument("profile", metavar="PROFILE", help="a YAML file of parameters, such as params/demo.yaml")
    add_swept(parser, "-p")
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder of the sweep; the same one goes on")
    parser.add_argument("--minutes", metavar="M", type=minutes, help="pause after so long (default: budget_minutes)")
    parser.add_argument("--take", metavar="FILE", help="write the winning values as a profile")
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


def planned_by(arguments: argparse.Namespace, out: str) -> Sweep:
    """The sweep that a command asks for."""
    profile = profile_path(arguments.profile)
    fixed, swept = read_profile(profile), dict[str, list[Given]]()
    fixed |= dict(read_override(text) for text in getattr(arguments, "overrides", []))
    for name, values in map(read_values, arguments.swept):
        if name in swept or (name in fixed and fixed[name].where == values[0].where):
            raise UserError(f"{values[0].where} is given twice: give all values of {name} at once.")
        if len(values) > 1:
            swept[name] = values
        else:
            fixed[name] = values[0]
    return plan_sweep(profile, fixed, swept, arguments.seeds, out, arguments.guard, getattr(arguments, "yes", False))


def main(arguments: argparse.Namespace) -> int:
    """Runs or explains a sweep; the exit status is 1 where every trial failed."""
    sweep = planned_by(arguments, arguments.out)
    say = Display().say
    sweeper = Sweeper(sweep, say, arguments.minutes or 0.0, arguments.take or "")
    if arguments.explain:
        sweeper.explain()
        return 0
    found = sweeper.go()
    for text in (found.table().to_string(index=False) * bool(found.verdict), *found.sentences):
        say(text)
    return int(len(found.failed) == len(sweep.trials))
