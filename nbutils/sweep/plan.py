"""What a sweep will do: its trials, each checked as a run is, and the folder that holds them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveInt

from nbutils.core.errors import UserError
from nbutils.core.files import Json, sha256_of_json, shown, write_text
from nbutils.core.notebooks import notebook_path, parameters
from nbutils.core.run.decide import StageState, inspect
from nbutils.core.run.layout import Run
from nbutils.core.run.record import SCHEMA, provenance, read_record, write_record
from nbutils.core.run.state import Kind, differences, in_short
from nbutils.core.settings import OUTSIDE, STEERING, Settings
from nbutils.core.stages import maker, stages
from nbutils.pipeline.parameters import Given, Plan, plan_of, profile_path, read_override, read_profile
from nbutils.sweep.guard import guarded, read_guard

SWEEP_RECORD = "sweep.json"
"""In the sweep's folder: what is planned."""
PROFILE = "profile.yaml"
"""In the sweep's folder: what all trials have in common, as a profile."""
TAKEN = "The recipe that a sweep has taken. "
"""How a profile of `take` begins."""
MOST_TRIALS = 200
"""More are planned only where a person says so."""
LONGEST_NAME = 120
"""Characters of a trial's folder."""
OF_TRIALS = {"budget_minutes": 0, "pause_after_steps": 0, "plain_loop_steps": 0}
"""Steering parameters of every trial: the sweep itself says when it pauses."""


@dataclass(frozen=True)
class TrialPlan:
    """One training: its values of the swept parameters, its seed, and the run that makes it."""

    values: Json
    seed: int
    plan: Plan
    rows: Path
    """The run folder with the data that it shares with other trials."""

    @property
    def run(self) -> Run:
        """Its run folder."""
        return Run(self.plan.run)

    @property
    def label(self) -> str:
        """What it is called in a sentence."""
        return f"{named(self.values)}, seed {self.seed}"

    @property
    def training(self) -> StageState:
        """How far its training is."""
        planned = self.plan.maker("model")
        return inspect(planned.stage, planned.settings)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.plan.run.name


@dataclass(frozen=True)
class Sweep:
    """The trials of a sweep, candidate by candidate.

    `common` are the values that they share, `guard` has numbers of items by task, `minutes` is the time for all of it (0
    for no limit), `take` the file for the winning values.
    """

    out: Path
    common: Json
    swept: dict[str, list[Any]]
    seeds: range
    trials: list[TrialPlan]
    guard: dict[str, int]
    minutes: float
    take: Path | None

    @property
    def profile(self) -> Path:
        """The profile of what the trials share."""
        return self.out / PROFILE

    @property
    def candidates(self) -> list[list[TrialPlan]]:
        """The trials of each combination of values."""
        return [self.trials[n : n + len(self.seeds)] for n in range(0, len(self.trials), len(self.seeds))]

    def candidate(self, trial: TrialPlan) -> list[TrialPlan]:
        """The trials with the same values."""
        return next(trials for trials in self.candidates if trial in trials)

    @property
    def rows(self) -> dict[Path, TrialPlan]:
        """The run folders with the data, each with a trial that reads it."""
        return {trial.rows: trial for trial in self.trials}

    @property
    def identity(self) -> Json:
        """What makes another sweep of it: which parameters are swept, and all others that change a result."""
        found: Json = {}
        for role in ("rows", "model"):
            found |= Settings.result_parameters(self.trials[0].plan.maker(role).settings)
        others = {n: value for n, value in found.items() if n not in (*self.swept, OUTSIDE, "seed")}
        return {"swept": sorted(self.swept), "parameters": others}

    def check_folder(self) -> None:
        """UserError where the folder holds another sweep, or something else."""
        record = read_record(self.out / SWEEP_RECORD)
        if record is None:
            if [*self.out.glob("[!.]*")]:
                raise UserError(f"{shown(self.out)} is there, and no sweep: name a new folder.")
            return
        before, now = record["identity"], self.identity
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

        looked = set[Path]()
        for trial, *_ in self.candidates:
            asked = [trial.plan.maker("model")]
            if trial.rows not in looked:
                asked += [trial.plan.maker("rows"), *([guarded(trial.plan, list(self.guard))] if self.guard else [])]
                looked.add(trial.rows)
            if stops := problems(trial.plan, asked):
                raise UserError(" ".join(stops))

    def write(self) -> None:
        """Writes what is planned, and the profile that all trials begin with."""
        trials = {trial.name: {"values": trial.values, "seed": trial.seed} for trial in self.trials}
        planned = {"swept": self.swept, "seeds": list(self.seeds), "guard": self.guard, "trials": trials}
        write_profile(self.profile, self.common | known(OF_TRIALS), "What all trials of this sweep have in common.")
        write_record(self.out / SWEEP_RECORD, {"schema": SCHEMA, "identity": self.identity, **planned, **provenance()})


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
        if count * self.seeds > MOST_TRIALS and not many:
            raise UserError(
                f"That is {count * self.seeds:,} trials, more than {MOST_TRIALS}: say --yes if you mean it."
            )
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
        take = profile_to_take(self.take) if self.take else None
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
        if _types().get(name) != "list" or (inner and all(isinstance(each, list) for each in inner)):
            found = inner
    return name, found or [None]


def profile_to_take(text: str) -> Path:
    """Where the winning values go. UserError where a file is there that no sweep has written."""
    file = Path(text).expanduser().absolute()
    try:
        ours = not file.exists() or file.read_text(encoding="utf-8").startswith(f"# {TAKEN}")
    except (OSError, UnicodeDecodeError):
        ours = False
    if not ours:
        raise UserError(f"{shown(file)} is there, and no sweep has written it: name another file.")
    return file


def named(values: Mapping[str, Any]) -> str:
    """Values of parameters in a sentence: `learning_rate 0.001, schedule linear`."""
    return ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()
    )


def write_profile(path: Path, values: Mapping[str, Any], *remarks: str) -> None:
    """Writes values as a profile, with remarks above them."""
    lines = [
        *(f"# {line}" for line in remarks),
        *(f"{n}: {json.dumps(v, ensure_ascii=False)}" for n, v in values.items()),
    ]
    write_text(path, "\n".join(lines) + "\n")  # JSON is YAML


def known(values: Mapping[str, Any]) -> Json:
    """Those of the values whose names are parameters here."""
    return {name: value for name, value in values.items() if name in _types()}


def _types() -> dict[str, str]:
    """The type of every parameter, as its notebook's cell has it."""
    return {name: each.type for stage in stages() for name, each in parameters(notebook_path(stage)).items()}


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
    elif known and not made:
        why = f"it belongs to {known[0].file}, which no trial runs: take it out"
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
