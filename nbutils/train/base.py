"""The base model that training starts from, kept in `train/base/` with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nbutils.core.chatml import add_chatml
from nbutils.core.errors import UserError
from nbutils.core.fetched import entry
from nbutils.core.files import read_json, replaced, resolve, sha256_of_file, shown, write_json
from nbutils.core.models import TINY, context_length, load_model, raw_tokenizer, tiny_model
from nbutils.train.settings import TrainSettings

SOURCE = "source.json"
"""In the base's folder: where it came from. The model card prints it."""


def ensure_base(settings: TrainSettings, folder: Path, data: Path) -> Path:
    """Writes the base model with ChatML into `folder` unless it is there, and returns the folder.

    UserError where the data was tokenised for another base, or holds longer rows than the model can read.
    """
    if not (folder / "config.json").is_file():
        tokenizer = data_tokenizer(settings, data)
        model = make_base(settings, tokenizer)
        with replaced(folder) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            write_json(partial / SOURCE, source_of(settings))
    return folder


def source_of(settings: TrainSettings) -> dict[str, Any]:
    """Where the base came from: its name as it was asked for, a hub model's commit, whether local, a file's hash."""
    name, path = settings.base_model, resolve(settings.base_model)
    commit = None if name == TINY or path.exists() else _commit(name, settings.base_revision)
    digest = sha256_of_file(path) if path.is_file() else None
    return {"schema": 1, "base_model": name, "local": path.exists(), "commit": commit, "sha256": digest}


def _commit(name: str, revision: str) -> str | None:
    """The commit of a hub model that was just loaded: of its fetched copy, or of the snapshot in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    fetched = entry("model", name, revision)
    if fetched:
        return str(fetched[1]["commit"])
    cached = try_to_load_from_cache(name, "config.json", revision=revision or None)
    return Path(cached).parent.name if isinstance(cached, str) else None


def data_tokenizer(settings: TrainSettings, data: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that the data stage used; refuses data tokenised for another base model or cut elsewhere."""
    summary = read_json(data / "summary.json")
    made_for = summary["tokenizer"]["base_model"]
    if made_for != settings.base_model:
        raise UserError(
            f"{shown(data)} was tokenised for base_model '{made_for}', but training asks for '{settings.base_model}'; "
            "run notebooks/01_filter_data.ipynb again with the same base_model."
        )
    if summary["max_length"] > settings.max_length:
        raise UserError(
            f"{shown(data)} holds conversations of up to {summary['max_length']} tokens, but max_length is "
            f"{settings.max_length} here; use the same max_length in both notebooks."
        )
    return AutoTokenizer.from_pretrained(data / "tokenizer")


def make_base(settings: TrainSettings, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The untrained `tiny`, or the given base with its embedding resized for ChatML, in float32 on the CPU."""
    if settings.base_model == TINY:
        return tiny_model(tokenizer, settings.max_length, settings.seed)
    model = load_model(settings.base_model, settings.base_revision)
    own = add_chatml(raw_tokenizer(settings.base_model, settings.base_revision), model)
    if own.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"The data's tokenizer has {len(tokenizer)} tokens, that of '{settings.base_model}' {len(own)} or others; "
            "run notebooks/01_filter_data.ipynb again with this base_model."
        )
    if settings.max_length > context_length(model):
        raise UserError(
            f"max_length is {settings.max_length} tokens, but '{settings.base_model}' reads {context_length(model)}; "
            "lower max_length in notebooks 01 and 02."
        )
    return model
