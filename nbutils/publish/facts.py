"""Everything that the model card says, read from the files of a run folder and from nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, read_jsonl, shown
from nbutils.core.run.layout import Run
from nbutils.core.run.record import RECORD, current_hash
from nbutils.core.stages import maker, spec

MODEL_FILES = ("tokenizer_config.json", "chat_template.jinja")
"""Files of the trained model that the card and the published folder cannot do without, beside the two that are read."""
DATA_FIGURES = {"lengths": "How long conversations are, in tokens"}
"""Pictures of the data stage that say more than the card's tables, and their captions."""

Rows = list[tuple[Any, ...]]
"""The rows of a table on the card."""


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
    """The facts of a run; UserError names the first missing or unreadable file and the notebook that makes it.

    UserError too where a stage was run on other files than those that are there now: its numbers are of another run.
    Parameters, versions and commit come from each stage's own record: `run.json` holds those of the last notebook that
    was opened.
    """
    own, layout, files = maker("card"), Run(run), _Files(run)
    stages: dict[str, dict[str, Any]] = {}
    for name in own.reads:
        record = layout.record(name)
        if record is None:
            raise files.missing(layout.folder(name) / RECORD)
        stages[name] = record
    for name, record in stages.items():
        for file, entry in record["outputs"].items():
            if own.needs(name, file):
                files.check_as_recorded(layout.folder(name), file, entry)
    for name, record in stages.items():
        _check_inputs(layout, name, record["inputs"], stages)
    model = layout.model()
    for name in MODEL_FILES:
        files.found(model / name)
    for name in ("config.json", "tokenizer.json"):
        files.json(model / name)
    if not list(model.glob("*.safetensors")):
        raise UserError(f"{shown(model)} holds no weights (*.safetensors): run notebooks/{maker('model').file} again.")
    curves, scores = (layout.folder(maker(role).name) for role in ("curves", "scores"))
    metrics = files.json(curves / "summary.json")
    return Facts(
        run=run,
        stages=stages,
        data=files.json(layout.rows / "summary.json"),
        training=files.json(layout.training / "settings.json"),
        base=files.json(layout.base / "source.json"),
        metrics=metrics,
        evaluation=files.json(scores / "results.json"),
        samples=files.jsonl(scores / "samples.jsonl"),
        transcript=files.json(layout.folder(maker("transcript").name) / "transcript.json"),
        figures={f"{curves.name}/figures/{name}": caption for name, caption in metrics["figures"].items()},
        data_figures={f"{layout.rows.name}/figures/{name}": caption for name, caption in DATA_FIGURES.items()},
        sessions=[row for row in files.jsonl(layout.training / "metrics.jsonl") if row["kind"] == "session"],
    )


@dataclass(frozen=True)
class _Files:
    """Reads files of a run; its errors name the notebook that makes a file."""

    run: Path

    def json(self, path: Path) -> dict[str, Any]:
        value = self._read(read_json, path)
        if not isinstance(value, dict):
            raise self._damaged(path, "is damaged (no JSON object)")
        return value

    def jsonl(self, path: Path) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._read(read_jsonl, path)
        return rows

    def found(self, path: Path) -> Path:
        if not path.is_file():
            raise self.missing(path)
        return path

    def check_as_recorded(self, folder: Path, file: str, entry: dict[str, Any]) -> None:
        """UserError where a file that the card or the published folder needs is not what its notebook wrote."""
        if current_hash(folder, file, entry) != entry["sha256"]:
            words = "is not what its notebook wrote (it is damaged, or was changed by hand)"
            raise self._damaged(self.found(folder / file), words)

    def missing(self, path: Path) -> UserError:
        return UserError(f"{shown(path)} is missing: run notebooks/{self._notebook(path)}, which makes it.")

    def _read(self, reader: Callable[[Path], Any], path: Path) -> Any:
        try:
            return reader(self.found(path))
        except ValueError as error:  # no JSON, or no UTF-8
            raise self._damaged(path, f"is damaged ({error})") from None

    def _damaged(self, path: Path, words: str) -> UserError:
        return UserError(f"{shown(path)} {words}: run notebooks/{self._notebook(path)} again.")

    def _notebook(self, path: Path) -> str:
        return spec(path.relative_to(self.run).parts[0]).file


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
