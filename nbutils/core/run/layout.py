"""Where things are in a run folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nbutils.core.errors import UserError
from nbutils.core.files import Json
from nbutils.core.run.checkpoints import STEP, Checkpoint, in_folder
from nbutils.core.run.record import RECORD, RUN_RECORD, read_record
from nbutils.core.run.state import State
from nbutils.core.stages import maker

CHECKPOINTS = "checkpoints"
"""The folder of checkpoints in a training's folder."""


@dataclass(frozen=True)
class Run:
    """A run folder."""

    path: Path

    @classmethod
    def around(cls, folder: Path) -> Run | None:
        """The run that a folder belongs to, or the folder itself where it is a run; None outside every run."""
        runs = map(cls, (folder, *folder.parents))
        return next((run for run in runs if (run.training / RECORD).is_file()), None)

    @property
    def name(self) -> str:
        """The run's name as its record gives it; the folder's name where the record cannot be read."""
        try:
            return str((read_record(self.path / RUN_RECORD) or {}).get("name", self.path.name))
        except UserError:
            return self.path.name

    def folder(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.path / stage

    def record(self, stage: str) -> Json | None:
        """The record of a stage; None where there is none. UserError for a damaged one."""
        return read_record(self.path / stage / RECORD)

    def state(self, stage: str) -> State:
        """What a stage's record says of it."""
        record = self.record(stage)
        return State(record["status"]) if record else State.ABSENT

    @property
    def rows(self) -> Path:
        """The folder of the stage that makes the rows."""
        return self.path / maker("rows").name

    @property
    def training(self) -> Path:
        """The folder of the stage that makes the model."""
        return self.path / maker("model").name

    @property
    def base(self) -> Path:
        """The model that training starts from."""
        return self.training / "base"

    @property
    def final(self) -> Path:
        """The model that a finished training leaves."""
        return self.training / "final"

    @property
    def last(self) -> Path:
        """The model of the last step, where `final` is an earlier one."""
        return self.training / "last"

    @property
    def heldout(self) -> Path:
        """What the final model loses on each held-out conversation."""
        return self.training / "heldout.parquet"

    @property
    def checkpoints_folder(self) -> Path:
        """Where the training keeps its checkpoints."""
        return self.training / CHECKPOINTS

    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints of the training, the newest first."""
        return in_folder(self.checkpoints_folder)

    def model(self) -> Path:
        """The folder of the trained model: `final`, or the newest checkpoint's of a paused training."""
        newest = self.newest_sealed() if self.state(maker("model").name) is State.PAUSED else None
        return newest.path if newest else self.final

    def newest_sealed(self) -> Checkpoint | None:
        """The newest checkpoint that was written to its end."""
        return next((checkpoint for checkpoint in self.checkpoints() if checkpoint.sealed), None)

    def newest_model(self) -> Path:
        """The newest model that is there: the final one, else the newest checkpoint's, else the base."""
        return next((folder for folder in self.models().values() if folder != self.base), self.base)

    def models(self) -> dict[str, Path]:
        """Name → folder of every model of the run: final (see `model`), base, last, checkpoints, the newest first."""
        named = {"final": self.model(), "base": self.base, "last": self.last}
        named |= {checkpoint.name: checkpoint.path for checkpoint in self.checkpoints()}
        return {name: folder for name, folder in named.items() if holds_model(folder)}


def holds_model(folder: Path) -> bool:
    """Whether a folder holds a model as transformers saves one."""
    return (folder / "config.json").is_file()


def is_run_model(name: str) -> bool:
    """Whether a name means a model of a run: `final`, `base`, `last` or `step-000500`."""
    return bool(re.fullmatch(rf"final|base|last|{STEP}\d+", name))
