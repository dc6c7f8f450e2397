"""What a sweep will do: its trials, each checked as a run is, and the folder that holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import Json, shown, write_text
from nbutils.core.run.decide import StageState, inspect
from nbutils.core.run.layout import Run
from nbutils.core.run.record import SCHEMA, provenance, read_record, write_record
from nbutils.core.run.state import Kind, differences, in_short
from nbutils.core.settings import Settings
from nbutils.pipeline.parameters import Plan, Planned
from nbutils.sweep.guard import guarded

SWEEP_RECORD = "sweep.json"
"""In the sweep's folder: what is planned."""
PROFILE = "profile.yaml"
"""In the sweep's folder: what all trials have in common, as a profile."""
TAKEN = "The recipe that a sweep has taken. "
"""How a profile of `take` begins."""
PAUSES = {"budget_minutes": 0, "pause_after_steps": 0, "plain_loop_steps": 0}
"""Parameters of every trial: the sweep itself says when it pauses, and nobody reads its plain loop."""


@dataclass(frozen=True)
class Step:
    """A stage that a sweep makes in a run folder, with the values of the swept parameters and the seed."""

    label: str
    planned: Planned
    values: Json
    seed: int

    @property
    def run(self) -> Run:
        """The run folder."""
        return Run(self.planned.settings.run_path)

    @property
    def state(self) -> StageState:
        """How far it is."""
        return inspect(self.planned.stage, self.planned.settings)


@dataclass(frozen=True)
class TrialPlan(Step):
    """The training of one recipe with one seed; `rows` makes the data that it shares with other trials."""

    plan: Plan
    rows: Step

    @property
    def linked(self) -> StageState:
        """The state of the data in its own run folder."""
        own = self.plan.maker("rows")
        return inspect(own.stage, own.settings)

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
    def profile(self) -> Path:
        """The profile of what the trials share."""
        return self.out / PROFILE

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
        """Writes what is planned, and the profile that all trials begin with."""
        trials = {trial.run.path.name: {"values": trial.values, "seed": trial.seed} for trial in self.trials}
        planned = {"schema": SCHEMA, "identity": self.identity, "trials": trials}
        write_record(self.out / SWEEP_RECORD, planned | provenance())
        write_profile(self.profile, self.common | PAUSES, "What all trials of this sweep have in common.")


def write_profile(path: Path, values: Mapping[str, Any], remark: str) -> None:
    """Writes values as a profile, with a remark above them."""
    lines = (f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())  # JSON is YAML
    write_text(path, f"# {remark}\n{''.join(lines)}")
