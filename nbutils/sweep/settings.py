"""What a sweep is asked for, in the notebook and on the command line, and the trials that follow from it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveInt

from nbutils.core.errors import UserError
from nbutils.core.files import Json, resolve, sha256_of_json, shown
from nbutils.core.settings import STEERING, Settings
from nbutils.core.stages import maker, stages
from nbutils.pipeline.parameters import OF_BUNDLES, Given, plan_of, profile_path, read_override, read_profile
from nbutils.sweep.guard import read_guard
from nbutils.sweep.plan import OF_TRIALS, PROFILE, TAKEN, Sweep, TrialPlan, known, types

MOST_TRIALS = 200
"""More are planned only where a person says so."""
LONGEST_NAME = 120
"""Characters of a trial's folder."""


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
        profile = profile_path(self.profile) if self.profile else self.run_path / PROFILE
        fixed = read_profile(profile) if self.profile else {}
        fixed |= _given(self.values)
        count = math.prod(map(len, self.sweep.values()))
        if count < 2:
            raise UserError("Nothing is swept: give a parameter several values, such as -p learning_rate=1e-4,1e-3.")
        count *= self.seeds
        if count > MOST_TRIALS and not many:
            raise UserError(
                f"That is {count:,} trials, more than {MOST_TRIALS}: say --yes, or in the notebook plan(many=True), "
                "if you mean it."
            )
        if "run_dir" in self.values:
            raise UserError("Each trial has a run_dir of its own below the sweep's: take it out.")
        for name in self.sweep:
            _check_sweepable(name)
        combinations = [dict(zip(self.sweep, values, strict=True)) for values in product(*self.sweep.values())]
        training = plan_of(profile, fixed | _given(combinations[0])).maker("model").settings.model_dump()
        seeds = range(training["seed"], training["seed"] + self.seeds)
        trials = [_trial(profile, fixed, each, seed, self.run_path) for each in combinations for seed in seeds]
        found: dict[str, list[Any]] = {name: [] for name in self.sweep}
        for name, values in found.items():
            for trial in trials:
                values += [] if trial.values[name] in values else [trial.values[name]]
            if len(values) < len(self.sweep[name]):
                raise UserError(f"A value of {name} is given twice; give each once.")
        common = {name: given.value for name, given in fixed.items() if name not in ("run_dir", *found)}
        minutes = self.minutes or training.get("budget_minutes", 0.0)
        take = resolve(self.take) if self.take else None
        if take:
            check_target(take, TAKEN, "sweep")
        return Sweep(self.run_path, common, found, seeds, trials, read_guard(self.guard), minutes, take)


def read_values(text: str) -> tuple[str, list[Any]]:
    """Name and values of a `-p NAME=V1,V2`; each is YAML.

    Brackets around all of them may be left out; of a parameter that is a list, each value has its own.
    """
    name, equals, values = text.partition("=")
    name, given = read_override(f"{name}=[{values}]" if equals else text)
    found = given.value
    if len(found) == 1 and isinstance(found[0], list):
        (inner,) = found
        if types().get(name) != "list" or (inner and all(isinstance(each, list) for each in inner)):
            found = inner
    return name, found or [None]


def check_target(file: Path, mark: str, writer: str) -> None:
    """UserError where a profile cannot be written, or holds what the `writer`, whose own begin with a mark, has not."""
    folder = next(each for each in file.parents if each.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"{shown(file)} cannot be written: name another file.")
    try:
        ours = not file.exists() or file.read_text(encoding="utf-8").startswith(f"# {mark}")
    except (OSError, UnicodeDecodeError):
        ours = False
    if not ours:
        raise UserError(f"{shown(file)} is there, and no {writer} has written it: name another file, or move it away.")


def _given(values: Mapping[str, Any]) -> dict[str, Given]:
    return {name: Given(value, name) for name, value in values.items()}


def _check_sweepable(name: str) -> None:
    """UserError for a parameter that cannot be swept; one that nobody knows is named when the trials are planned."""
    known = [stage for stage in stages() if name in stage.settings_class().model_fields]
    made = any(stage in known for stage in (maker("rows"), maker("model")))
    why = ""
    if name == "seed":
        why = "every trial is repeated with as many seeds as --seeds says, from the profile's seed on: take it out"
    elif name == "split_seed":
        why = "it is the same for all trials, so that all are measured on the same conversations: take it out"
    elif name == "supervise":
        why = "each of its values counts the loss on other tokens, so that trials cannot be compared: give it one value"
    elif name in OF_BUNDLES or (known and not made):
        why = "no trial reads it: take it out"
    elif known and not (_changes("rows", name) or _changes("model", name)):
        why = "it changes nothing of what a training makes: give it one value"
    if why:
        raise UserError(f"{name} cannot be swept; {why}.")


def _trial(profile: Path, fixed: dict[str, Given], values: Json, seed: int, out: Path) -> TrialPlan:
    """The trial with these values of the swept parameters."""
    of_rows = {name: value for name, value in values.items() if _changes("rows", name)}
    folder, rows = (out / name for name in (_folder(values, f"seed-{seed}"), _folder(of_rows, maker("rows").name)))
    own = values | known(OF_TRIALS) | {"seed": seed, "run_dir": shown(folder)}
    planned = plan_of(profile, fixed | _given(own))
    read = planned.maker("rows").injected | planned.maker("model").injected
    return TrialPlan({name: read[name] for name in values}, seed, planned, rows)


def _changes(role: str, name: str) -> bool:
    """Whether a parameter changes what the stage of that role makes."""
    field = maker(role).settings_class().model_fields.get(name)
    return field is not None and STEERING not in field.metadata


def _folder(values: Mapping[str, Any], last: str) -> str:
    """The name of a folder for these values: readable, and another one for other values."""
    words = "_".join([*(f"{name}-{_slug(value)}" for name, value in values.items()), last])
    return words if len(words) <= LONGEST_NAME else f"{words[: LONGEST_NAME // 2]}-{sha256_of_json(values)[:8]}_{last}"


def _slug(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    word = re.sub(r"[^\w.+-]+", "-", text).strip("-")[:40]
    return word if word == text else f"{word}-{sha256_of_json(value)[:6]}"
