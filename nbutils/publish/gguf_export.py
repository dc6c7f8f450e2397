"""The folder `gguf/` of what is published: the files that were asked for, each proven in llama.cpp, and a Modelfile."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from nbutils.core.files import Json, read_json, write_json, write_text, written
from nbutils.core.llamacpp import installed
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef
from nbutils.core.stages import maker
from nbutils.publish.export import GENERATION, GGUF, UNPROVEN
from nbutils.publish.facts import Facts
from nbutils.publish.gguf_parity import prove, session
from nbutils.publish.gguf_vocabulary import vocabulary
from nbutils.publish.gguf_writer import KINDS, check_config, readable_context, write_gguf
from nbutils.publish.ollama import check_modelfile, modelfile
from nbutils.publish.settings import PublishSettings

HUB = "https://huggingface.co/{}"
PROOF = "proof.json"
"""In that folder: what was made, and what was compared."""


def make_gguf(facts: Facts, settings: PublishSettings, folder: Path) -> list[Path]:
    """Makes and proves what `gguf` asks for; returns the files, relative to `folder`. One says what was compared.

    Where llama.cpp is missing the files' names say that they are unproven. UserError where the model cannot be one,
    answers otherwise in llama.cpp, or the disk is full: then nothing is left.
    """
    from datasets import load_from_disk

    target, source = folder / GGUF, facts.model_folder
    shutil.rmtree(target, ignore_errors=True)
    if not settings.gguf:
        return []
    ref = ModelRef.parse(str(source))
    config, tokenizer = ref.config(), ref.raw_tokenizer()
    words = vocabulary(tokenizer, config.vocab_size)
    rows = load_from_disk(str(Run(facts.run).rows / "eval"))["messages"][:]
    proven, slug = installed(), re.sub(r"[^\w.-]+", "-", settings.model_name).strip("-.") or "model"
    ending = ".gguf" if proven else UNPROVEN
    # Q8_0 is measured against F16, which is made even where nobody asked for it.
    kinds = [kind for kind in KINDS if kind in settings.gguf or (proven and kind == "f16")]
    made: Json = {"architecture": check_config(config), "context": readable_context(config), "files": {}}
    with written(target) as partial:
        partial.mkdir()
        files = {kind: partial / f"{slug}-{kind.upper()}{ending}" for kind in kinds}
        kept = {k: write_gguf(f, k, source, words, GENERATION, about(facts, settings)) for k, f in files.items()}
        if proven:
            ours = session(source, rows, settings.parity_conversations, settings.parity_replies, settings.parity_tokens)
            made |= prove(files, ours)
        for kind, file in files.items():
            if kind not in settings.gguf:
                file.unlink()
                made["files"].pop(kind)
                continue
            facts_of = {"name": file.name, "bytes": file.stat().st_size, "kept_f16": kept[kind]}
            made["files"][kind] = made["files"].get(kind, {}) | facts_of
        first = next(iter(made["files"].values()))["name"]
        text = modelfile(first, GENERATION, made["context"], settings.license)
        made["modelfile_characters"] = check_modelfile(text, rows)
        write_text(partial / "Modelfile", text)
        write_json(partial / PROOF, made)
    return [file.relative_to(folder) for file in sorted(target.iterdir())]


def check_convertible(ref: ModelRef) -> None:
    """UserError where no GGUF file can be made of a model; its weights are not read."""
    config = ref.config()
    check_config(config)
    vocabulary(ref.raw_tokenizer(), config.vocab_size)


def read_gguf(run: Path) -> Json:
    """What `make_gguf` made in the run's published folder; {} for nothing."""
    file = Run(run).folder(maker("card").name) / GGUF / PROOF
    return dict(read_json(file)) if file.is_file() else {}


def about(facts: Facts, settings: PublishSettings) -> Json:
    """The metadata of a file, by GGUFWriter's names: name, licence, languages, the card's address and the base."""
    found: Json = {"name": settings.model_name, "license": settings.license, "languages": settings.languages}
    if settings.repo_id:
        found["url"] = HUB.format(settings.repo_id)
    if facts.base_kind != "tiny":
        base = facts.hub_base(settings)
        found |= {"base_model_count": 1, "base_model_name": (0, base or Path(facts.base_model).name)}
        found |= {"base_model_repo_url": (0, HUB.format(base))} if base else {}
    return found
