"""Everything that the model card says, read from the files of a run folder and from nowhere else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, read_jsonl, shown
from nbutils.core.notebooks import spec
from nbutils.core.record import trained_model

MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Files of the trained model that the card and the published folder cannot do without; the weights come on top."""
ENDINGS = (".png", "-dark.png")
"""A figure on the card is two files: light and dark."""


@dataclass(frozen=True)
class Facts:
    """The contents of the files that the card is made from."""

    run: Path
    record: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    metrics: dict[str, Any]
    evaluation: dict[str, Any]
    samples: list[dict[str, Any]]
    transcript: dict[str, Any]
    figures: dict[str, str]

    @property
    def model_folder(self) -> Path:
        """The trained model in the run folder."""
        return trained_model(self.run)


def read_facts(run: Path) -> Facts:
    """The facts of a run; UserError names the first missing or unreadable file and the notebook that makes it."""
    metrics = _json(run, "metrics", "summary.json")
    for name in MODEL_FILES:
        _found(trained_model(run) / name, "train")
    if not list(trained_model(run).glob("*.safetensors")):
        raise UserError(
            f"{shown(trained_model(run))} holds no weights (*.safetensors): run notebooks/{spec('train').file} again."
        )
    _found(run / "train" / "metrics.jsonl", "train")
    figures = {f"metrics/figures/{name}": caption for name, caption in metrics["figures"].items()}
    for name in figures:
        for ending in ENDINGS:
            _found(run / f"{name}{ending}", "metrics")
    return Facts(
        run=run,
        record=read_json(_found(run / "run.json", "train")),
        data=_json(run, "data", "summary.json"),
        training=_json(run, "train", "settings.json"),
        metrics=metrics,
        evaluation=_json(run, "evaluate", "results.json"),
        samples=read_jsonl(_found(run / "evaluate" / "samples.jsonl", "evaluate")),
        transcript=_json(run, "chat", "transcript.json"),
        figures=figures,
    )


def data_figures(facts: Facts) -> dict[str, str]:
    """Names of the data stage's pictures, light and dark, that say more than the card's tables, and their captions."""
    captions = {"lengths": "How long conversations are, in tokens"}
    folder = facts.run / "data" / "figures"
    return {n: c for n, c in captions.items() if all((folder / f"{n}{end}").is_file() for end in ENDINGS)}


def _json(run: Path, stage: str, name: str) -> dict[str, Any]:
    path = _found(run / stage / name, stage)
    try:
        value: dict[str, Any] = read_json(path)
    except json.JSONDecodeError as error:
        raise UserError(f"{shown(path)} is damaged ({error}): run notebooks/{spec(stage).file} again.") from None
    return value


def _found(path: Path, stage: str) -> Path:
    if not path.is_file():
        raise UserError(f"{shown(path)} is missing: run notebooks/{spec(stage).file}, which makes it.")
    return path
