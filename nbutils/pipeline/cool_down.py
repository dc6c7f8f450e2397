"""`run PROFILE --cool-down RUN[@step-N]`: a new run that ends the constant part of a `wsd` run with a cool-down.

The new run folder begins with the other's data, base, log and checkpoint, and is from then on a run like any other: it
equals one that was planned with that many steps from the start.
"""

from __future__ import annotations

import argparse
import shutil
from itertools import count
from pathlib import Path

from nbutils.core.errors import UserError
from nbutils.core.files import Json, link_tree, resolve, shown
from nbutils.core.run.checkpoints import Checkpoint
from nbutils.core.run.layout import Run
from nbutils.core.run.record import RUN_RECORD, SCHEMA, read_record, write_record
from nbutils.core.run.state import Kind, differences, in_short
from nbutils.pipeline.parameters import Plan, plan
from nbutils.train.settings import OF_LENGTH, TrainSettings


def cooled(arguments: argparse.Namespace, planned: Plan) -> Plan:
    """The plan of the new run, whose folder is then begun (not by --explain); the same command again goes on with it.

    It takes the fewest steps with such a cool-down, or max_steps where the command line gives them. UserError where one
    of the two is no `wsd` run, where the profile asks for something else than their lengths, where there is no such
    checkpoint or its cool-down has begun, or where the new folder holds something else.
    """
    settings = _training(planned)
    if settings.schedule != "wsd":
        raise UserError(f"{planned.profile.name}: schedule is {settings.schedule}, and only wsd cools down; set it so.")
    given, _, name = arguments.cool_down.partition("@")
    parent, new = Run(resolve(given)), planned.run
    begun = _origin(new)
    known = begun.get("run") == str(parent.path) and name in ("", begun.get("checkpoint"))
    source = Checkpoint(parent.checkpoints_folder / begun["checkpoint"]) if known else _branch(parent, name)
    if new == parent.path:
        new = new.with_name(f"{new.name}-cooled-{source.step}")
        begun = _origin(new)
    origin = {"run": str(parent.path), "checkpoint": source.name}
    if source.sealed:  # the parent may have pruned it since
        _check(planned, arguments.overrides, parent, source)
    if begun != origin and new.exists() and any(new.iterdir()):
        raise UserError(f"{shown(new)} holds something else: name a new folder with --run-dir.")
    steps = next(n for n in count(source.step + 1) if settings.cooldown_from(n) == source.step)
    if any(text.partition("=")[0].strip() == "max_steps" for text in arguments.overrides):
        steps = settings.max_steps
        if (settings.cooldown_from(steps) or 0) < source.step:
            raise UserError(f"max_steps is {steps}, whose cool-down would begin before {source.name}; give more.")
    print(f"{shown(new)}: {source.name} of {shown(parent.path)} goes on and is cooled down, until step {steps}.")
    if begun != origin and not arguments.explain:
        folder = Run(new.with_name(f".{new.name}.partial"))
        shutil.rmtree(folder.path, ignore_errors=True)
        link_tree(parent.rows, folder.rows)
        link_tree(parent.base, folder.base)
        link_tree(source.path, folder.checkpoints_folder / source.name)
        for file in parent.training.glob("*.jsonl"):  # rows are appended to these
            shutil.copyfile(file, folder.training / file.name)
        write_record(folder.path / RUN_RECORD, {"schema": SCHEMA, "name": new.name, "parameters": {}, "parent": origin})
        folder.path.rename(new)  # a kill before leaves no run
    return plan(planned.profile, [*arguments.overrides, f"max_steps={steps}", "finish_in_minutes=0"], str(new))


def _origin(folder: Path) -> Json:
    """Of which run and checkpoint a run folder was begun; nothing for any other folder."""
    return dict((read_record(folder / RUN_RECORD) or {}).get("parent", {}))


def _training(planned: Plan) -> TrainSettings:
    settings = planned.maker("model").settings
    assert isinstance(settings, TrainSettings)
    return settings


def _branch(parent: Run, name: str) -> Checkpoint:
    """The checkpoint of that name, or the newest, of the constant part of a run."""
    constant = [each for each in parent.checkpoints() if each.sealed and each.fact("open")]
    found = next((each for each in constant if name in ("", each.name)), None)
    if found:
        return found
    there = ", ".join(each.name for each in constant) or "none"
    raise UserError(
        f"{shown(parent.path)} has no checkpoint {name}{' ' * bool(name)}of the constant part of a wsd run (there: "
        f"{there}): train with schedule wsd, or name another."
    )


def _check(planned: Plan, overrides: list[str], parent: Run, source: Checkpoint) -> None:
    """UserError where the profile would train from other data, or otherwise than the checkpoint was."""
    asked = _training(planned).own_parameters()
    found = differences(Kind.PARAMETER, source.manifest["identity"]["parameters"], asked)
    if changes := [change for change in found if change.name not in OF_LENGTH]:
        raise UserError(f"{shown(source.path)} was trained with other settings ({in_short(changes)}): set them back.")
    made = plan(planned.profile, overrides, str(parent.path)).maker("rows")
    data = made.state()
    if not data.fits:
        raise UserError(f"The data of {shown(parent.path)} is not what the profile asks for ({data.reason}).")
