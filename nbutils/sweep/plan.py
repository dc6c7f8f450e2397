"""What a sweep will do: its trials, each checked as a run is, and the folder that holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import Json, shown, write_text
from nbutils.core.notebooks import notebook_path, parameters
from nbutils.core.run.decide import StageState, inspect
from nbutils.core.run.layout import Run
from nbutils.core.run.record import SCHEMA, provenance, read_record, write_record
from nbutils.core.run.state import Kind, differences, in_short
from nbutils.core.settings import OUTSIDE, Settings
from nbutils.core.stages import stages
from nbutils.pipeline.parameters import Plan
from nbutils.sweep.guard import guarded
from nbutils.sweep.verdict import label

SWEEP_RECORD = "sweep.json"
"""In the sweep's folder: what is planned."""
PROFILE = "profile.yaml"
"""In the sweep's folder: what all trials have in common, as a profile."""
TAKEN = "The recipe that a sweep has taken. "
"""How a profile of `take` begins."""
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
        return f"{label(self.values, [*self.values])}, seed {self.seed}"

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

    `common` are the values that they share, `guard` has numbers of items by task, `minutes` is the time for all of it,
    0 for no limit, `take` the file for the winning values.
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
        write_record(self.out / SWEEP_RECORD, {"schema": SCHEMA, "identity": self.identity, **planned, **provenance()})
        write_profile(self.profile, self.common | known(OF_TRIALS), "What all trials of this sweep have in common.")


def write_profile(path: Path, values: Mapping[str, Any], *remarks: str) -> None:
    """Writes values as a profile, with remarks above them."""
    lines = [
        *(f"# {line}" for line in remarks),
        *(f"{n}: {json.dumps(v, ensure_ascii=False)}" for n, v in values.items()),
    ]
    write_text(path, "\n".join(lines) + "\n")  # JSON is YAML


def known(values: Mapping[str, Any]) -> Json:
    """Those of the values whose names are parameters here."""
    return {name: value for name, value in values.items() if name in types()}


def types() -> dict[str, str]:
    """The type of every parameter, as its notebook's cell has it."""
    return {name: each.type for stage in stages() for name, each in parameters(notebook_path(stage)).items()}
