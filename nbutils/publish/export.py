"""The folder that `from_pretrained` and `pipeline("text-generation")` take as it is, and that the Hub gets."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from nbutils.core.chat_engine.sampling import Sampling
from nbutils.core.chatml import IM_END, PAD
from nbutils.core.files import read_json, replaced, write_json, write_text
from nbutils.core.run.layout import Run
from nbutils.core.run.models import TOKENIZER_FILES
from nbutils.core.run.record import RECORD
from nbutils.core.stages import maker
from nbutils.publish.facts import Facts
from nbutils.publish.settings import PublishSettings

MODEL_PATTERNS = ("*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES)
"""What of a trained model's folder is published; anything else in it (optimizer state, arguments) stays home."""

EVIDENCE = {
    "rows": ("summary.json",),
    "model": ("settings.json", "metrics.jsonl"),
    "curves": ("summary.json",),
    "scores": ("results.json", "comparison.md", "samples.jsonl", "items/*.parquet"),
    "transcript": ("transcript.json",),
}
"""Files beside the model that the card's numbers come from, by the stage's role; `run/<stage>-<name>` there."""

GGUF, UNPROVEN = "gguf", ".unproven.gguf"
"""The folder of the files for llama.cpp, and how the name of one ends that was not proven."""

NO_PROOF = (
    "push_page is on, and llama.cpp is not there to prove that the page answers as the model does: `pip install "
    "xllamacpp`, and run notebook 06 again."
)

PAGE = "page"
"""The folder of the page that talks."""

GENERATION = Sampling().generation_config()
"""How the chat session samples unless told otherwise; plain transformers then does too."""


def export(facts: Facts, settings: PublishSettings, folder: Path) -> list[Path]:
    """Fills `folder` with model, figures and evidence, laid out as the Hub repository; returns the files, relative.

    The weights are copied as they are. `generation_config.json` stops at `<|im_end|>` and samples as the session does.
    """
    source = facts.model_folder
    for file in sorted({file for pattern in MODEL_PATTERNS for file in source.glob(pattern)}):
        _copy(file, folder / file.name)
    ids = token_ids(source)
    write_json(folder / "generation_config.json", GENERATION | {"eos_token_id": ids[IM_END], "pad_token_id": ids[PAD]})
    for name in facts.figures:
        for suffix in (".png", "-dark.png", *((".svg", "-dark.svg") if name.startswith(maker("curves").name) else ())):
            _copy(facts.run / f"{name}{suffix}", folder / f"{published_figure(name)}{suffix}")
    for role, patterns in EVIDENCE.items():
        stage = Run(facts.run).folder(maker(role).name)
        for file in (file for pattern in patterns for file in stage.glob(pattern)):
            target = folder / "run" / f"{stage.name}-{file.relative_to(stage)}"
            if file.suffix == ".parquet":  # named after a model, which may be a path
                _copy(file, target.with_name(facts.hide(file.name.replace("__", "/")).replace("/", "__")))
            else:
                write_text(target, facts.hide(file.read_text(encoding="utf-8")))
    kept = ("started", "seconds", "git_commit", "versions", "key")
    records = {stage: {name: record[name] for name in kept} for stage, record in facts.stages.items()}
    write_json(folder / "run" / "stages.json", records)
    off = {"run_dir": "runs/again", "push": False, "push_page": False, "accept_repeats": False, "wllama_dir": ""}
    parameters = facts.pinned_parameters | settings.model_dump(mode="json") | off
    write_text(folder / "run" / "parameters.yaml", yaml.safe_dump(parameters, sort_keys=False, allow_unicode=True))
    return published_files(folder)


def published_figure(name: str) -> str:
    """Where a picture of the run folder is in the published one, both without the ending."""
    stage, _, picture = name.partition("/figures/")
    return f"figures/{picture}" if stage == maker("curves").name else f"figures/{stage}-{picture}"


def published_files(folder: Path) -> list[Path]:
    """The files that make up the repository, relative to the folder: all but the stage's own record and the page.

    Nor is `gguf/` part of it where a file there is unproven.
    """
    files = (file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file())
    home = {RECORD, PAGE, *([GGUF] if any(folder.glob(f"{GGUF}/*{UNPROVEN}")) else [])}
    return [file for file in files if file.parts[0] not in home and ".partial" not in str(file)]


def token_ids(folder: Path) -> dict[str, int]:
    """Text and id of each token that the folder's tokenizer has beside its pieces: those of ChatML are among them."""
    return {token["content"]: token["id"] for token in read_json(folder / "tokenizer.json")["added_tokens"]}


def _copy(source: Path, target: Path) -> None:
    with replaced(target) as partial:
        shutil.copyfile(source, partial)
