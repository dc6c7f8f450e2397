"""`python -m nbutils doctor`: checks machine, parameters, data and model before an hour is spent."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.core.jupyter import quiet
from nbutils.pipeline.ahead import problems
from nbutils.pipeline.parameters import plan
from nbutils.pipeline.profile import add_profile, profile_path
from nbutils.train.settings import TrainSettings

if TYPE_CHECKING:
    from nbutils.train.preflight import Finding

DEFAULT = "params/demo.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `doctor`."""
    add_profile(parser, DEFAULT)
    parser.add_argument(
        "--overfit",
        action="store_true",
        help="also learn four short conversations by heart with the real training processes (a minute or so)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Prints every finding, problems last; the exit status is 1 where one of them would stop a run."""
    from nbutils.train.preflight import LATER, STOP, counted, report  # imports torch

    quiet()
    found = report(findings(arguments))
    stops = found[STOP]
    if not stops:
        print("Nothing stands against this run" + (", as far as it can be checked yet." if found[LATER] else "."))
        return 0
    print(f"\n{counted(len(stops), 'problem')} would stop this run or spoil it:")
    for number, text in enumerate(stops, start=1):
        print(f"  {number}. {text}")
    return 1


def findings(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Every finding, as it is made."""
    from nbutils.train.overfit import overfit  # imports torch
    from nbutils.train.preflight import FINE, LATER, STOP, Finding, run_findings

    profile = profile_path(arguments.profile)
    try:
        planned = plan(profile, arguments.overrides, arguments.run_dir)
    except UserError as error:
        yield Finding(STOP, str(error))
        yield Finding(LATER, "Nothing else can be checked until the parameters are right.")
        return
    yield Finding(FINE, f"Every parameter of {shown(profile)} is known and in its range.")
    yield from (Finding(STOP, problem) for problem in problems(planned, planned.stages))
    for entry in planned.stages:
        if isinstance(entry.settings, TrainSettings):
            yield from run_findings(entry.settings)
            if arguments.overfit:
                print("        Learning four short conversations by heart …", flush=True)
                yield from overfit(entry.settings)
