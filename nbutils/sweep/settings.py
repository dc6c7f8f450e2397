"""What a sweep is asked for, the trials that follow from it, checked as runs are, and the folder that holds them."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveInt

from nbutils.core.errors import UserError
from nbutils.core.files import Json, resolve, sha256_of_bytes, sha256_of_json, shown, write_text, writing
from nbutils.core.run.decide import StageState
from nbutils.core.run.layout import Run
from nbutils.core.run.record import SCHEMA, provenance, read_record, write_record
from nbutils.core.run.state import Kind, differences, in_short
from nbutils.core.settings import STEERING, Settings
from nbutils.core.stages import maker, stages
from nbutils.pipeline.parameters import (
    OF_BUNDLES,
    Given,
    Plan,
    Planned,
    plan_of,
    profile_path,
    read_override,
    read_profile,
)
from nbutils.sweep.guard import guarded, read_guard
from nbutils.sweep.verdict import label

SWEEP_RECORD = "sweep.json"
"""In the sweep's folder: what is planned."""
PROFILE = "profile.yaml"
"""In the sweep's folder: what all trials have in common, as a profile."""
TAKEN = "The recipe that a sweep has taken. "
"""How a profile of `take` begins."""
SEAL = "# As it was written: sha256 "
"""Begins the last line of a written profile, which shows whether it was edited since."""
PAUSES = {"budget_minutes": 0, "pause_after_steps": 0, "plain_loop_steps": 0}
"""Parameters of every trial: the sweep itself says when it pauses, and nobody reads its plain loop."""
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


@dataclass(frozen=True)
class Step:
    """A stage that a sweep makes in a run folder; `options` are its parameters beside those that all share."""

    label: str
    planned: Planned
    options: Json

    @property
    def run(self) -> Run:
        """The run folder."""
        return Run(self.planned.settings.run_path)

    @property
    def state(self) -> StageState:
        """How far it is."""
        return self.planned.state()


@dataclass(frozen=True)
class TrialPlan(Step):
    """The training of one recipe with one seed; `rows` makes the data that it shares with other trials."""

    values: Json
    seed: int
    plan: Plan
    rows: Step

    @property
    def linked(self) -> StageState:
        """The state of the data in its own run folder."""
        return self.plan.maker("rows").state()

    @property
    def state(self) -> StageState:
        """How far the training is; the state of its data where this has changed since."""
        return linked if (linked := self.linked).stale else super().state


@dataclass(frozen=True)
class Sweep:
    """The trials of a sweep by candidates: each has a trial for each seed.

    `common` are the values that they share, `guard` has numbers of items by task, `minutes` is the time for all of it,
    0 for no limit, `take` the file for the winning values.
    """

    out: Path
    common: Json
    candidates: list[list[TrialPlan]]
    guard: dict[str, int]
    minutes: float
    take: Path | None

    @property
    def trials(self) -> list[TrialPlan]:
        """The trials of all candidates."""
        return [*chain(*self.candidates)]

    @property
    def rows(self) -> dict[Run, TrialPlan]:
        """The run folders with the data, each with the last trial that reads it."""
        return {trial.rows.run: trial for trial in self.trials}

    @property
    def identity(self) -> Json:
        """What makes another sweep of it: which parameters are swept, and all others that change a result."""
        made = [self.trials[0].plan.maker(role).settings for role in ("rows", "model")]
        found = dict(chain(*(Settings.result_parameters(settings).items() for settings in made)))
        swept = sorted(self.trials[0].values)
        return {"swept": swept, "parameters": {n: v for n, v in found.items() if n not in (*swept, "seed")}}

    def check_folder(self) -> None:
        """UserError where the folder holds another sweep, or something else."""
        before = (read_record(self.out / SWEEP_RECORD) or {}).get("identity")
        if before is None:
            if [*self.out.glob("[!.]*")]:
                raise UserError(f"{shown(self.out)} is there, and no sweep: name a new folder.")
            return
        now = self.identity
        words = in_short(list(differences(Kind.PARAMETER, before["parameters"], now["parameters"])))
        if before["swept"] != now["swept"]:
            words = f"of {', '.join(before['swept'])}"
        if words:
            raise UserError(
                f"{shown(self.out)} holds another sweep ({words}): name a new folder, or set that back. More values of "
                "the same parameters, and more seeds, can join a sweep."
            )

    def check_ahead(self) -> None:
        """UserError for what a trial, or the guard, would stop over."""
        from nbutils.pipeline.ahead import problems  # imports pandas: `--explain` doesn't wait for it

        for *_, trial in self.candidates:
            asked = [trial.planned]
            if trial in self.rows.values():
                asked += [trial.plan.maker("rows"), *([guarded(trial.plan, list(self.guard))] if self.guard else [])]
            if stops := problems(trial.plan, asked):
                raise UserError(" ".join(stops))

    def write(self) -> None:
        """Writes what is planned, and the profile that all trials begin with. UserError where the disk is full."""
        trials = {trial.run.path.name: {"values": trial.values, "seed": trial.seed} for trial in self.trials}
        planned = {"schema": SCHEMA, "identity": self.identity, "trials": trials}
        with writing(self.out):
            write_record(self.out / SWEEP_RECORD, planned | provenance())
        write_profile(self.out / PROFILE, self.common | PAUSES)


def write_profile(path: Path, values: Mapping[str, Any], *remarks: str) -> None:
    """Writes values as a profile, with remarks above them. UserError where it cannot be written."""
    lines = [f"# {remark}\n" for remark in remarks]
    lines += [f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()]  # JSON is YAML
    text = "".join(lines)
    with writing(path):
        write_text(path, _sealed(text))


def _sealed(text: str) -> str:
    return f"{text}{SEAL}{sha256_of_bytes(text.encode())}\n"


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
        take = resolve(self.take) if self.take else None
        if take:
            check_target(take, TAKEN, "sweep")
        minutes = self.minutes or training["budget_minutes"]
        return Sweep(self.run_path, common, candidates, read_guard(self.guard), minutes, take)


def read_values(text: str) -> tuple[str, list[Any]]:
    """Name and values of a `-p NAME=V1,V2`; each is YAML."""
    name, equals, values = text.partition("=")
    name, given = read_override(f"{name}=[{values}]" if equals else text)
    return name, given.value or [None]


def check_target(file: Path, mark: str, writer: str) -> None:
    """UserError where a profile cannot be written, or is not as the `writer`, whose own begin with a mark, wrote it."""
    folder = next(each for each in file.parents if each.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"{shown(file)} cannot be written: name another file.")
    with writing(file):
        text = file.read_text(errors="replace") if file.exists() else None
        if text is not None and not (text.startswith(f"# {mark}") and text == _sealed(text.rpartition(SEAL)[0])):
            raise UserError(
                f"{shown(file)} is there, and not as `{writer}` has written it: move it away, or name another file."
            )


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
    making = Step(f"rows of {label(of_rows) or 'all trials'}", there, of_rows)
    return TrialPlan(f"{label(read)}, seed {seed}", model, read | {"seed": seed}, read, seed, planned, making)


def _folder(values: Mapping[str, Any], last: str) -> str:
    """The name of a folder for these values: readable, and another one for other values."""
    words = [f"{name}-{value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()]
    text = "_".join(words)
    name = re.sub(r"[^\w.+-]+", "-", text)[:LONGEST_NAME]
    return "_".join(filter(None, (name if name == text else f"{name}-{sha256_of_json(values)[:8]}", last)))
