"""`python -m nbutils doctor`: checks machine, parameters, data and model before an hour is spent."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from nbutils.core.files import shown
from nbutils.core.jupyter import quiet
from nbutils.pipeline.ahead import problems
from nbutils.pipeline.fetch import need_hub, not_here, wanted_by
from nbutils.pipeline.parameters import Plan, plan
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
    """Prints every finding, problems last; the exit status is 1 where one of them would stop a run.

    UserError at once for wrong parameters, and where what the profile takes from the hub cannot be had.
    """
    profile = profile_path(arguments.profile)
    planned = plan(profile, arguments.overrides, arguments.run_dir)
    settings = {entry.stage.name: entry.settings for entry in planned.stages}
    for tasks in (False, True):
        need_hub(not_here(wanted_by(settings, tasks)), profile)
    from nbutils.train.preflight import FINE, LATER, STOP, Finding, counted, report  # imports torch

    quiet()
    known = Finding(FINE, f"Every parameter of {shown(profile)} is known and in its range.")
    found = report(chain([known], findings(planned, arguments.overfit)))
    stops = found[STOP]
    if not stops:
        print("Nothing stands against this run" + (", as far as it can be checked yet." if found[LATER] else "."))
        return 0
    print(f"\n{counted(len(stops), 'problem')} would stop this run or spoil it:")
    for number, text in enumerate(stops, start=1):
        print(f"  {number}. {text}")
    return 1


def findings(planned: Plan, learn: bool) -> Iterator[Finding]:
    """Every finding, as it is made."""
    from nbutils.train.overfit import overfit  # imports torch
    from nbutils.train.preflight import STOP, Finding, run_findings

    yield from (Finding(STOP, problem) for problem in problems(planned, planned.stages))
    for entry in planned.stages:
        if isinstance(entry.settings, TrainSettings):
            yield from run_findings(entry.settings)
            if learn:
                print("        Learning four short conversations by heart …", flush=True)
                yield from overfit(entry.settings)
