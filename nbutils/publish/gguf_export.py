"""The folder `gguf/` of what is published: the files that were asked for, each proven in llama.cpp, and a Modelfile."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nbutils.core.errors import UserError
from nbutils.core.files import Json, read_json, replaced, shown, write_json, write_text
from nbutils.core.llamacpp import PACKAGE, installed
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef
from nbutils.core.stages import maker
from nbutils.core.text import counted, size, with_interval
from nbutils.publish.export import GENERATION, GGUF, UNPROVEN
from nbutils.publish.facts import Facts
from nbutils.publish.gguf_parity import prove, session
from nbutils.publish.gguf_vocabulary import vocabulary
from nbutils.publish.gguf_writer import check_config, readable_context, write_gguf
from nbutils.publish.ollama import check_modelfile, modelfile
from nbutils.publish.settings import PublishSettings

PROOF = "proof.json"
"""In that folder: what was made, and what was compared."""


PROVEN = (
    f"Proven in llama.cpp ({PACKAGE} {{llama_cpp}}): {{token_ids:,}} token ids of {{conversations}} held-out "
    "conversations, and those of {hostile_texts} hostile texts."
)


def make_gguf(facts: Facts, settings: PublishSettings, folder: Path) -> Json:
    """Makes and proves what `gguf` asks for in `folder`; returns what was made, as in `proof.json`; {} for nothing.

    Where llama.cpp is missing the files' names say that they are unproven. UserError where the model cannot be one,
    answers otherwise in llama.cpp, or the disk is full: then nothing is left.
    """
    from datasets import load_from_disk

    target, source = folder / GGUF, facts.model_folder
    shutil.rmtree(target, ignore_errors=True)
    if not settings.gguf:
        return {}
    ref = ModelRef.parse(str(source))
    config, tokenizer = ref.config(), ref.raw_tokenizer()
    words = vocabulary(tokenizer, config.vocab_size, sentencepiece_of(facts))
    rows = load_from_disk(str(Run(facts.run).rows / "eval"))["messages"][:]
    proven, slug = installed(), re.sub(r"[^\w.-]+", "-", settings.model_name).strip("-.") or "model"
    ending = ".gguf" if proven else UNPROVEN
    # Q8_0 is measured against F16, which is made even where nobody asked for it.
    kinds = [kind for kind in ("f16", "q8_0") if kind in settings.gguf or proven]
    kinds = kinds if "q8_0" in settings.gguf else ["f16"]
    made: Json = {"architecture": check_config(config), "context": readable_context(config), "files": {}}
    with _room(target), replaced(target) as partial:
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
    return made


def check_convertible(ref: ModelRef) -> None:
    """UserError where no GGUF file can be made of a model; its weights are not read."""
    config = ref.config()
    check_config(config)
    vocabulary(ref.raw_tokenizer(), config.vocab_size)


def read_gguf(run: Path) -> Json:
    """What `make_gguf` made in the run's published folder; {} for nothing."""
    file = Run(run).folder(maker("card").name) / GGUF / PROOF
    return dict(read_json(file)) if file.is_file() else {}


def summary(made: Json) -> str:
    """What was made and proven, in words, a line each."""
    if not made:
        return "No GGUF file was made (gguf is [])."
    lines = []
    for file in made["files"].values():
        words = f"{file['name']}, {size(file['bytes'])}"
        if file["kept_f16"]:
            words += f"; {counted(len(file['kept_f16']), 'tensor')} in F16, since rows do not divide by 32"
        lines.append(words)
        if "reply_tokens" in file:
            equal = f"{file['equal_share']:.1%} equal"
            lines.append(f"  {file['reply_tokens']:,} tokens of {file['replies']} greedy replies, {equal}")
        if "ties" in file:
            lines[-1] += f" ({counted(file['ties'], 'tie')}, {file['rounded']} moved by F16's rounding)"
        if "against_f16" in file:
            value, low, high = file["against_f16"]
            lines[-1] += f"; log-likelihood against F16 {with_interval(value, low, high, '+')} nats a token"
    if "token_ids" in made:
        lines.append(PROVEN.format(**made))
    else:
        lines.append(f"Unproven, and not to be pushed: `pip install {PACKAGE}`, and run this notebook again.")
    return "\n".join(lines)


def about(facts: Facts, settings: PublishSettings) -> Json:
    """The metadata of a file: name, licence, languages, tags, the card's address and the base."""
    base = facts.hub_base(settings)
    found: Json = {"general.name": settings.model_name, "general.license": settings.license}
    found |= {"general.languages": settings.languages, "general.tags": ["chatml", *settings.tags]}
    if settings.repo_id:
        found["general.url"] = f"https://huggingface.co/{settings.repo_id}"
    if facts.base_kind != "tiny":
        found |= {"general.base_model.count": 1, "general.base_model.0.name": base or Path(facts.base_model).name}
        found |= {"general.base_model.0.repo_url": f"https://huggingface.co/{base}"} if base else {}
    return found


def sentencepiece_of(facts: Facts) -> Path | None:
    """The `tokenizer.model` of the trained model, or of its base where that lies on this machine."""
    try:
        base = ModelRef.parse(str(facts.trained["parameters"]["base_model"])).path
    except UserError:  # it is gone since
        base = None
    files = (folder / "tokenizer.model" for folder in (facts.model_folder, base) if folder and folder.is_dir())
    return next(filter(Path.is_file, files), None)


@contextmanager
def _room(target: Path) -> Iterator[None]:
    """Turns a full or broken disk into a sentence."""
    try:
        yield
    except OSError as error:
        free = size(shutil.disk_usage(target.parent).free)
        raise UserError(
            f"{shown(target)} could not be written: {error.strerror or error} ({free} are free there): make room, and "
            "run this notebook again."
        ) from error
