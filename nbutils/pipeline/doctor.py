"""`python -m nbutils doctor`: checks machine, parameters, data and model before an hour is spent."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.core.run.layout import Run, holds_model
from nbutils.core.run.models import TINY
from nbutils.core.text import counted
from nbutils.pipeline.ahead import problems
from nbutils.pipeline.parameters import Plan, add_profile, planned_by
from nbutils.train.settings import TrainSettings

if TYPE_CHECKING:
    from nbutils.train.preflight import Finding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `doctor`."""
    add_profile(parser, default="params/demo.yaml")
    parser.add_argument(
        "--overfit",
        action="store_true",
        help="also learn four short conversations by heart with the real training processes (a minute or so)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Prints every finding, problems last; the exit status is 1 where one of them would stop a run.

    UserError at once for wrong parameters, and where what the profile takes from the hub cannot be had.
    """
    planned = planned_by(arguments)
    stops = problems(planned, planned.stages)
    from nbutils.train.preflight import LATER, STOP, report  # imports torch

    found = report(findings(planned, stops, arguments.overfit))
    stops = found[STOP]
    if not stops:
        print("Nothing stands against this run" + (", as far as it can be checked yet." if found[LATER] else "."))
        return 0
    print(f"\n{counted(len(stops), 'problem')} would stop this run or spoil it:")
    for number, text in enumerate(stops, 1):
        print(f"  {number}. {text}")
    return 1


def findings(planned: Plan, stops: list[str], learn: bool) -> Iterator[Finding]:
    """Every finding, as it is made; `stops` is what is known already."""
    from nbutils.train.overfit import overfit  # imports torch
    from nbutils.train.preflight import FINE, NOTE, STOP, Finding, run_findings

    profile = shown(planned.profile)
    yield Finding(FINE, f"Every parameter of {profile} is known and in its range.")
    yield from (Finding(STOP, text) for text in stops)
    for settings in (entry.settings for entry in planned.stages if isinstance(entry.settings, TrainSettings)):
        unseen = settings.base_model != TINY and not holds_model(Run(planned.run).base)
        with suppress(UserError):  # a base that cannot be had is among `stops`
            if unseen and settings.base_ref.path is None:
                yield Finding(
                    NOTE,
                    f"Whether the weights of {settings.base_model} fit its configuration was not looked at, since they "
                    f"are not fetched: run `python -m nbutils fetch {profile}`, then this again.",
                )
        yield from (finding for finding in run_findings(settings) if finding.text not in stops)
        if learn:
            print("        Learning four short conversations by heart …", flush=True)
            yield from overfit(settings)
