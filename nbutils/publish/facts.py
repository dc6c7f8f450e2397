"""Everything that the model card says, read from the files of a run folder and from nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, read_jsonl, shown
from nbutils.core.notebooks import spec
from nbutils.core.record import RECORD, current_hash, matches, stage_record, trained_model

MODEL_FILES = ("tokenizer_config.json", "chat_template.jinja")
"""Files of the trained model that the card and the published folder cannot do without, beside the two that are read."""
ENDINGS = (".png", "-dark.png")
"""A figure on the card is two files: light and dark."""


@dataclass(frozen=True)
class Facts:
    """The contents of the files that the card is made from; `stages` are the records of the stages before this one.

    `sessions` are the training's, each with its versions.
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
    sessions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def model_folder(self) -> Path:
        """The trained model in the run folder."""
        return trained_model(self.run)

    @property
    def base_model(self) -> str:
        """The base as training was asked for it: `tiny`, a hub id, a folder or a file."""
        return str(self.stages["train"]["parameters"].get("base_model", ""))

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The parameters of all stages; of a name that several have, training's value counts, else the last one's."""
        merged: dict[str, Any] = {}
        for record in (*self.stages.values(), self.stages["train"]):
            merged |= record["parameters"]
        return merged

    @property
    def disagreements(self) -> dict[str, dict[str, Any]]:
        """Parameters that two stages were run with different values of: name → {stage: value}."""
        found = {}
        for name in self.parameters:
            given = {s: record["parameters"][name] for s, record in self.stages.items() if name in record["parameters"]}
            if name != "run_dir" and any(value != self.parameters[name] for value in given.values()):
                found[name] = given
        return found


def read_facts(run: Path) -> Facts:
    """The facts of a run; UserError names the first missing or unreadable file and the notebook that makes it.

    UserError too where a stage was run on other files than those that lie there now: its numbers are of another run.
    Parameters, versions and commit come from each stage's own record: `run.json` holds those of the last notebook that
    was opened.
    """
    reads = spec("publish").reads
    stages = {name: _record(run, name) for name in reads}
    for name, patterns in reads.items():
        for file, entry in stages[name]["outputs"].items():
            if matches(file, patterns):
                _as_recorded(run, name, file, entry)
    for name, record in stages.items():
        _read_the_same(run, name, record, stages)
    model = trained_model(run)
    for name in MODEL_FILES:
        _found(model / name, "train")
    for name in ("config.json", "tokenizer.json"):
        _json(model / name, "train")
    if not list(model.glob("*.safetensors")):
        raise UserError(f"{shown(model)} holds no weights (*.safetensors): run notebooks/{spec('train').file} again.")
    rows = _jsonl(run / "train" / "metrics.jsonl", "train")
    metrics = _json(run / "metrics" / "summary.json", "metrics")
    figures = {f"metrics/figures/{name}": caption for name, caption in metrics["figures"].items()}
    for name in figures:
        for ending in ENDINGS:
            _found(run / f"{name}{ending}", "metrics")
    source = run / "train" / "base" / "source.json"
    return Facts(
        run=run,
        stages=stages,
        data=_json(run / "data" / "summary.json", "data"),
        training=_json(run / "train" / "settings.json", "train"),
        base=_json(source, "train") if source.is_file() else {},  # runs of an earlier smallchat have none
        metrics=metrics,
        evaluation=_json(run / "evaluate" / "results.json", "evaluate"),
        samples=_jsonl(run / "evaluate" / "samples.jsonl", "evaluate"),
        transcript=_json(run / "chat" / "transcript.json", "chat"),
        figures=figures,
        sessions=[row for row in rows if row.get("kind") == "session"],
    )


def data_figures(facts: Facts) -> dict[str, str]:
    """Names of the data stage's pictures, light and dark, that say more than the card's tables, and their captions."""
    captions = {"lengths": "How long conversations are, in tokens"}
    folder = facts.run / "data" / "figures"
    return {n: c for n, c in captions.items() if all((folder / f"{n}{end}").is_file() for end in ENDINGS)}


def _record(run: Path, stage: str) -> dict[str, Any]:
    record = stage_record(run, stage)
    if record is None:
        raise UserError(f"{shown(run / stage / RECORD)} is missing: run notebooks/{spec(stage).file}, which makes it.")
    return record


def _as_recorded(run: Path, stage: str, file: str, entry: dict[str, Any]) -> None:
    """UserError where a file that the card or the published folder needs is not what its notebook wrote."""
    if current_hash(run / stage, file, entry) != entry["sha256"]:
        path = _found(run / stage / file, stage)
        raise UserError(
            f"{shown(path)} is not what its notebook wrote (it is damaged, or was changed by hand): run "
            f"notebooks/{spec(stage).file} again."
        )


def _read_the_same(run: Path, stage: str, record: dict[str, Any], stages: dict[str, dict[str, Any]]) -> None:
    """UserError where earlier stages have made other files since this one read theirs, unless a person accepted that.

    Of those that the card does not need itself, such as the base's weights, the record alone may be left.
    """
    for name, sha256 in record.get("inputs", {}).items():
        upstream, _, file = name.partition("/")
        entry = stages[upstream]["outputs"].get(file, {})
        if sha256 not in (entry.get("sha256"), current_hash(run / upstream, file, entry)):
            raise UserError(
                f"{shown(run / stage)} belongs to another run: {name} has changed since notebooks/{spec(stage).file} "
                "read it; run that notebook again, or keep its work with --accept, which the card will say."
            )


def _json(path: Path, stage: str) -> dict[str, Any]:
    value = _read(read_json, path, stage)
    if not isinstance(value, dict):
        raise UserError(f"{shown(path)} is damaged (no JSON object): run notebooks/{spec(stage).file} again.")
    return value


def _jsonl(path: Path, stage: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = _read(read_jsonl, path, stage)
    return rows


def _read(reader: Callable[[Path], Any], path: Path, stage: str) -> Any:
    try:
        return reader(_found(path, stage))
    except ValueError as error:  # no JSON, or no UTF-8
        raise UserError(f"{shown(path)} is damaged ({error}): run notebooks/{spec(stage).file} again.") from None


def _found(path: Path, stage: str) -> Path:
    if not path.is_file():
        raise UserError(f"{shown(path)} is missing: run notebooks/{spec(stage).file}, which makes it.")
    return path
