"""`run PROFILE --cool-down RUN[@step-N]`: a new run that ends the constant part of a `wsd` run with a cool-down.

The new run folder begins with the other's data, base, log and checkpoint, and is from then on a run like any other: it
equals one that was planned with that many steps from the start.
"""

from __future__ import annotations

import argparse
import shutil
from itertools import count

from nbutils.core.errors import UserError
from nbutils.core.files import link_tree, resolve, shown
from nbutils.core.run.checkpoints import Checkpoint
from nbutils.core.run.layout import Run
from nbutils.core.run.record import RUN_RECORD, SCHEMA, read_record, write_record
from nbutils.core.stages import maker
from nbutils.pipeline.parameters import Plan, plan
from nbutils.train.settings import TrainSettings


def cooled(arguments: argparse.Namespace, planned: Plan) -> Plan:
    """The plan of the new run, whose folder is then begun (not by --explain); the same command again goes on with it.

    UserError where one of the two is no `wsd` run, where there is no such checkpoint, or where its cool-down has begun.
    """
    given, _, name = arguments.cool_down.partition("@")
    parent = Run(resolve(given))
    source = _branch(parent, name)
    settings = next(each.settings for each in planned.stages if each.stage == maker("model"))
    assert isinstance(settings, TrainSettings)
    if settings.schedule != "wsd":
        raise UserError(f"{planned.profile.name}: schedule is {settings.schedule}, and only wsd cools down; set it so.")
    steps = next(n for n in count(source.step + 1) if settings.cooldown_from(n) == source.step)
    new = planned.run
    if new == parent.path:
        new = new.with_name(f"{new.name}-cooled-{source.step}")
    record = read_record(new / RUN_RECORD)
    origin = {"run": str(parent.path), "checkpoint": source.name}
    if record is None and not arguments.explain:
        begun = Run(new.with_name(f".{new.name}.partial"))
        _begin(begun, parent, source)
        write_record(begun.path / RUN_RECORD, {"schema": SCHEMA, "name": new.name, "parameters": {}, "parent": origin})
        begun.path.rename(new)  # a kill before leaves no run
    elif record and record.get("parent") != origin:
        raise UserError(f"{shown(new)} holds another run: name a new folder with --run-dir.")
    print(f"{shown(new)}: {source.name} of {shown(parent.path)} is cooled down, until step {steps}.")
    return plan(planned.profile, [*arguments.overrides, f"max_steps={steps}"], str(new))


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


def _begin(run: Run, parent: Run, source: Checkpoint) -> None:
    """What the new run takes from the other: all but a record of the training."""
    shutil.rmtree(run.path, ignore_errors=True)
    link_tree(parent.rows, run.rows)
    link_tree(parent.base, run.base)
    link_tree(source.path, run.checkpoints_folder / source.name)
    for file in parent.training.glob("*.jsonl"):  # rows are appended to these
        shutil.copyfile(file, run.training / file.name)
