"""The folder that `from_pretrained` and `pipeline("text-generation")` take as it is, and that the Hub gets."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from nbutils.core.chatml import IM_END, PAD
from nbutils.core.files import read_json, replaced, write_json, write_text
from nbutils.publish.facts import ENDINGS, Facts, data_figures
from nbutils.publish.origin import pinned_parameters, stage_records
from nbutils.publish.settings import PublishSettings

MODEL_PATTERNS = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""What of a trained model's folder is published; anything else in it (optimizer state, arguments) stays home."""

EVIDENCE = {
    "data": ("summary.json",),
    "train": ("settings.json", "metrics.jsonl"),
    "metrics": ("summary.json",),
    "evaluate": ("results.json", "comparison.md", "samples.jsonl", "items/*.parquet"),
    "chat": ("transcript.json",),
}
"""Files beside the model that the card's numbers come from; `run/<stage>-<name>` there."""

GENERATION = {
    "do_sample": True,
    "temperature": 0.75,
    "top_k": 0,
    "top_p": 0.9,
    "repetition_penalty": 1.2,
    "max_new_tokens": 250,
}
"""How the chat session samples unless told otherwise (`nbutils.core.sampling`); plain transformers then does too."""


def export(facts: Facts, settings: PublishSettings, folder: Path) -> list[Path]:
    """Fills `folder` with model, figures and evidence, laid out as the Hub repository; returns the files, relative.

    The weights are copied as they are. `generation_config.json` stops at `<|im_end|>` and samples as the session does.
    """
    source = facts.model_folder
    for file in sorted({file for pattern in MODEL_PATTERNS for file in source.glob(pattern)}):
        _copy(file, folder / file.name)
    write_json(folder / "generation_config.json", GENERATION | _token_ids(source))
    for name in facts.figures:
        for ending in (".png", ".svg", "-dark.png", "-dark.svg"):
            file = facts.run / f"{name}{ending}"
            if file.is_file():
                _copy(file, folder / "figures" / file.name)
    for name in data_figures(facts):
        for ending in ENDINGS:
            _copy(facts.run / "data" / "figures" / f"{name}{ending}", folder / "figures" / f"data-{name}{ending}")
    for stage, patterns in EVIDENCE.items():
        for file in sorted(file for pattern in patterns for file in (facts.run / stage).glob(pattern)):
            _copy(file, folder / "run" / f"{stage}-{file.relative_to(facts.run / stage)}")
    write_json(folder / "run" / "stages.json", stage_records(facts))
    parameters = pinned_parameters(facts) | settings.model_dump(mode="json") | {"run_dir": "runs/again", "push": False}
    write_text(folder / "run" / "parameters.yaml", yaml.safe_dump(parameters, sort_keys=False, allow_unicode=True))
    return published_files(folder)


def published_files(folder: Path) -> list[Path]:
    """The files that make up the repository, relative to the folder: everything but the stage's own record."""
    files = (file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file())
    return [file for file in files if str(file) != "stage.json" and not file.name.endswith(".partial")]


def control_tokens(folder: Path) -> list[tuple[str, int, str]]:
    """Text, id and purpose of each ChatML token, from the folder's tokenizer."""
    vocabulary = read_json(folder / "tokenizer.json")
    ids = {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    purposes = {
        "<|im_start|>": "opens a message; the role follows",
        IM_END: "closes a message; the model stops here (eos)",
        PAD: "fills up batches; never eos",
    }
    return [(token, ids[token], purpose) for token, purpose in purposes.items() if token in ids]


def _token_ids(folder: Path) -> dict[str, int | None]:
    ids = {token: number for token, number, _ in control_tokens(folder)}
    return {"bos_token_id": read_json(folder / "config.json").get("bos_token_id"), "eos_token_id": ids[IM_END],
            "pad_token_id": ids[PAD]}  # fmt: skip


def _copy(source: Path, target: Path) -> None:
    with replaced(target) as partial:
        shutil.copyfile(source, partial)
