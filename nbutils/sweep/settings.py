"""What a sweep is asked for, in the notebook and on the command line, and the trials that follow from it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveInt

from nbutils.core.errors import UserError
from nbutils.core.files import Json, resolve, sha256_of_json, shown, writing
from nbutils.core.settings import STEERING, Settings
from nbutils.core.stages import maker, stages
from nbutils.pipeline.parameters import OF_BUNDLES, Given, plan_of, profile_path, read_override, read_profile
from nbutils.sweep.guard import read_guard
from nbutils.sweep.plan import PAUSES, PROFILE, TAKEN, Step, Sweep, TrialPlan
from nbutils.sweep.verdict import label

MOST_TRIALS = 200
"""More are planned only where a person says so."""
LONGEST_NAME = 100
"""Characters of a trial's folder that say its values."""
OWN = {"run_dir", *PAUSES} - {"budget_minutes"}
"""Parameters that the sweep sets for each trial. The budget is that of the sweep."""
NOT_SWEPT = {
    "seed": "every trial is repeated with as many seeds as --seeds says, from the profile's seed on: take it out",
    "split_seed": "it is the same for all trials, so that all are measured on the same conversations: take it out",
    "supervise": "each of its values counts the loss on other tokens, so that trials cannot be compared: give it one "
    "value",
}


class SweepSettings(Settings):
    """What a sweep is asked for; `run_dir` is its folder, `values` are what all trials share beside the profile's."""

    profile: str
    values: dict[str, Any]
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]]
    seeds: PositiveInt
    minutes: NonNegativeFloat
    guard: str
    take: str

    def plan(self, many: bool = False) -> Sweep:
        """The sweep over all combinations of values, checked by the settings of the stages.

        `many` allows more than MOST_TRIALS. UserError for what is wrong.
        """
        count = math.prod(map(len, self.sweep.values()))
        if count < 2:
            raise UserError("Nothing is swept: give a parameter several values, such as -p learning_rate=1e-4,1e-3.")
        if count * self.seeds > MOST_TRIALS and not many:
            raise UserError(
                f"That is {count * self.seeds:,} trials, more than {MOST_TRIALS}: say --yes, or in the notebook "
                "plan(many=True), if you mean it."
            )
        for name in OWN.intersection(self.values):
            raise UserError(f"A sweep sets {name} for each of its trials: take it out.")
        for name in self.sweep:
            _check_sweepable(name)
        profile = profile_path(self.profile) if self.profile else self.run_path / PROFILE
        fixed = (read_profile(profile) if self.profile else {}) | _given(self.values)
        recipes = [dict(zip(self.sweep, values, strict=True)) for values in product(*self.sweep.values())]
        training = plan_of(profile, fixed | _given(recipes[0])).maker("model").settings.model_dump()
        seeds = range(training["seed"], training["seed"] + self.seeds)
        candidates = [[_trial(profile, fixed, recipe, seed, self.run_path) for seed in seeds] for recipe in recipes]
        labels = [trial.label for trial, *_ in candidates]
        for each in labels:
            if labels.count(each) > 1:
                raise UserError(f"{each} is planned twice: give each value once.")
        common = {name: given.value for name, given in fixed.items() if name not in OWN.union(self.sweep)}
        minutes = self.minutes or training["budget_minutes"]
        take = profile_to_take(self.take) if self.take else None
        return Sweep(self.run_path, common, candidates, read_guard(self.guard), minutes, take)


def read_values(text: str) -> tuple[str, list[Any]]:
    """Name and values of a `-p NAME=V1,V2`; each is YAML."""
    name, equals, values = text.partition("=")
    name, given = read_override(f"{name}=[{values}]" if equals else text)
    return name, given.value or [None]


def profile_to_take(text: str) -> Path:
    """Where the winning values go. UserError where that cannot be written, or holds what no sweep has written."""
    file = resolve(text)
    folder = next(each for each in file.parents if each.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"{shown(file)} cannot be written: name another file.")
    with writing(file):
        if file.exists() and not file.read_bytes().startswith(f"# {TAKEN}".encode()):
            raise UserError(f"{shown(file)} is there, and no sweep has written it: name another file.")
    return file


def _given(values: Mapping[str, Any]) -> dict[str, Given]:
    return {name: Given(value, name) for name, value in values.items()}


def _check_sweepable(name: str) -> None:
    """UserError for a parameter that cannot be swept; one that nobody knows is named when the trials are planned."""
    known = name in OF_BUNDLES or any(name in stage.settings_class().model_fields for stage in stages())
    why = NOT_SWEPT.get(name)
    if known and not (_changes("rows", name) or _changes("model", name)):
        why = "it changes nothing of what a training makes: give it one value"
    if why:
        raise UserError(f"{name} cannot be swept; {why}.")


def _changes(role: str, name: str) -> bool:
    """Whether a parameter changes what the stage of that role makes."""
    field = maker(role).settings_class().model_fields.get(name)
    return field is not None and STEERING not in field.metadata


def _trial(profile: Path, fixed: dict[str, Given], values: Json, seed: int, out: Path) -> TrialPlan:
    """The trial with these values of the swept parameters."""
    folder = out / _folder(values, f"seed-{seed}")
    planned = plan_of(profile, fixed | _given(PAUSES | values | {"seed": seed, "run_dir": shown(folder)}))
    rows, model = planned.maker("rows"), planned.maker("model")
    read = {name: (rows.injected | model.injected)[name] for name in values}
    of_rows = {name: value for name, value in read.items() if _changes("rows", name)}
    shared = out / _folder(of_rows, rows.stage.name)
    there = replace(rows, settings=rows.settings.model_copy(update={"run_dir": str(shared)}))
    making = Step(f"rows of {label(of_rows) or 'all trials'}", there, of_rows, seed)
    return TrialPlan(f"{label(read)}, seed {seed}", model, read, seed, planned, making)


def _folder(values: Mapping[str, Any], last: str) -> str:
    """The name of a folder for these values: readable, and another one for other values."""
    words = [f"{name}-{value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()]
    text = "_".join(words)
    name = re.sub(r"[^\w.+-]+", "-", text)[:LONGEST_NAME]
    return "_".join(filter(None, (name if name == text else f"{name}-{sha256_of_json(values)[:8]}", last)))
