"""`python -m nbutils run`: its arguments, and what it makes of them."""

from __future__ import annotations

import argparse
import math
from dataclasses import fields

from nbutils.pipeline.choice import Options, explain
from nbutils.pipeline.display import Display
from nbutils.pipeline.parameters import plan
from nbutils.pipeline.profile import add_profile, profile_path
from nbutils.pipeline.run import Job, Runner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `run`."""
    add_profile(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--from", metavar="STAGE", dest="start", help="rerun this stage and all later ones")
    which.add_argument("--only", metavar="STAGE", help="run this stage alone, on the earlier ones as they are")
    parser.add_argument("--until", metavar="STAGE", help="run no stage after this one")
    stale = parser.add_mutually_exclusive_group()
    stale.add_argument("--accept", action="store_true", help="keep long work that is stale, as if it were not")
    stale.add_argument("--force", action="store_true", help="set long work that is stale aside and start again")
    parser.add_argument(
        "--allow-paused", action="store_true", help="run later stages on a paused training's checkpoint"
    )
    parser.add_argument("--explain", action="store_true", help="say what would be run and why, and run nothing")
    parser.add_argument(
        "--cell-minutes", metavar="N", type=_minutes, help="fail a cell that takes longer (default: no limit)"
    )


def main(arguments: argparse.Namespace) -> int:
    """Runs a profile; the exit status."""
    display = Display()
    options = Options(**{field.name: getattr(arguments, field.name) for field in fields(Options)})
    planned = plan(profile_path(arguments.profile), arguments.overrides, arguments.run_dir)
    if arguments.explain:
        return explain(planned, options, display)
    return Runner(planned, options, display, _execute).go()


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no limit: give minutes above 0, or leave it out")
    return value


def _execute(job: Job) -> None:
    """The engine, imported when the first notebook has to run: a run in which nothing happens doesn't wait for it."""
    from nbutils.pipeline import engine

    engine.execute(job)
