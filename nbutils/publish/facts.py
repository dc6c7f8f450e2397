"""Everything that the model card says, read from the files of a run folder and from nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, read_jsonl, shown
from nbutils.core.run.layout import Run
from nbutils.core.run.record import RECORD, current_hash
from nbutils.core.stages import maker, spec

DATA_FIGURES = {"lengths": "How long conversations are, in tokens"}
"""Pictures of the data stage that say more than the card's tables, and their captions."""


@dataclass(frozen=True)
class Facts:
    """The contents of the files that the card is made from; `stages` are the records of the stages before this one.

    `figures` and `data_figures`: a picture's path in the run, without its ending → its caption. `sessions` are the
    training's, each with its versions.
    """

    run: Path
    stages: dict[str, dict[str, Any]]
    data: dict[str, Any]
    training: dict[str, Any]
    base: dict[str, Any]
    metrics: dict[str, Any]
    evaluation: dict[str, Any]
    samples: list[dict[str, Any]]
    transcript: dict[str, Any]
    figures: dict[str, str]
    data_figures: dict[str, str]
    sessions: list[dict[str, Any]]

    @property
    def model_folder(self) -> Path:
        """The trained model in the run folder."""
        return Run(self.run).model()

    @property
    def trained(self) -> dict[str, Any]:
        """The record of the training."""
        return self.stages[maker("model").name]

    @property
    def base_model(self) -> str:
        """The base as training was asked for it: `tiny`, a hub id, a folder or a file."""
        return str(self.trained["parameters"]["base_model"])

    @property
    def size(self) -> int:
        """The parameters of the model, as the evaluation counted them."""
        return next(int(model["parameters"]) for model in self.evaluation["models"] if model["name"] == "run")

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The parameters of all stages; of a name that several have, training's value counts, else the last one's."""
        merged: dict[str, Any] = {}
        for record in (*self.stages.values(), self.trained):
            merged |= record["parameters"]
        return merged


def read_facts(run: Path) -> Facts:
    """The facts of a run; UserError names the first file that is missing or not as its notebook wrote it.

    UserError too where a stage was run on other files than those that are there now: its numbers are of another run.
    Parameters, versions and commit come from each stage's own record: `run.json` holds those of the last notebook that
    was opened.
    """
    own, layout = maker("card"), Run(run)
    stages: dict[str, dict[str, Any]] = {}
    for name in own.reads:
        record = layout.record(name)
        if record is None:
            raise _unlike(layout, name, RECORD, "missing")
        stages[name] = record
    model = layout.model()
    for name, record in stages.items():
        folder = layout.folder(name)
        for file, entry in record["outputs"].items():
            found = current_hash(folder, file, entry)
            if found != entry["sha256"] and (own.needs(name, file) or (folder / file).parent == model):
                raise _unlike(layout, name, file, found)
    for name, record in stages.items():
        _check_inputs(layout, name, record["inputs"], stages)
    curves, scores = (layout.folder(maker(role).name) for role in ("curves", "scores"))
    metrics = read_json(curves / "summary.json")
    return Facts(
        run=run,
        stages=stages,
        data=read_json(layout.rows / "summary.json"),
        training=read_json(layout.training / "settings.json"),
        base=read_json(layout.base / "source.json"),
        metrics=metrics,
        evaluation=read_json(scores / "results.json"),
        samples=read_jsonl(scores / "samples.jsonl"),
        transcript=read_json(layout.folder(maker("transcript").name) / "transcript.json"),
        figures={f"{curves.name}/figures/{name}": caption for name, caption in metrics["figures"].items()},
        data_figures={f"{layout.rows.name}/figures/{name}": caption for name, caption in DATA_FIGURES.items()},
        sessions=[row for row in read_jsonl(layout.training / "metrics.jsonl") if row["kind"] == "session"],
    )


def _unlike(run: Run, stage: str, file: str, found: str) -> UserError:
    """A file that the card or the published folder needs is gone, or is not what its notebook wrote."""
    changed = "is not what its notebook wrote (it is damaged, or was changed by hand)"
    words = "is missing" if found == "missing" else changed
    return UserError(f"{shown(run.folder(stage) / file)} {words}: run notebooks/{spec(stage).file} again.")


def _check_inputs(run: Run, stage: str, inputs: dict[str, str], stages: dict[str, dict[str, Any]]) -> None:
    """UserError where earlier stages have made other files since this one read theirs, unless a person accepted that.

    Of those that the card does not need itself, such as the base's weights, the record alone may be left.
    """
    for name, sha256 in inputs.items():
        upstream, _, file = name.partition("/")
        entry = stages[upstream]["outputs"].get(file, {})
        if sha256 not in (entry.get("sha256"), current_hash(run.folder(upstream), file, entry)):
            raise UserError(
                f"{shown(run.folder(stage))} belongs to another run: {name} has changed since notebooks/"
                f"{spec(stage).file} read it; run that notebook again, or keep its work with --accept, which the card "
                "will say."
            )
