"""The base model that training starts from, kept in `train/base/` with its tokenizer."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nbutils.core.chatml import add_chatml
from nbutils.core.errors import UserError
from nbutils.core.files import read_json, replaced, shown, write_json
from nbutils.core.run.layout import Run, holds_model
from nbutils.core.run.models import TINY, VOCABULARY, ModelRef, context_length, tiny_config, tiny_model
from nbutils.train.loss import check_head
from nbutils.train.settings import TrainSettings

SOURCE = "source.json"
"""In the base's folder: its provenance. The model card prints it."""


def ensure_base(settings: TrainSettings, folder: Path, data: Path) -> Path:
    """Writes the base model with ChatML into `folder` unless it is there, and returns the folder.

    UserError where the data was tokenised for another base, or holds longer rows than the model can read.
    """
    if not holds_model(folder):
        tokenizer = data_tokenizer(settings, data)
        model = make_base(settings, tokenizer)
        with replaced(folder) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            write_json(partial / SOURCE, source_of(settings))
    return folder


def source_of(settings: TrainSettings) -> dict[str, Any]:
    """Where the base came from: its name as it was asked for, a hub model's commit, whether local, a file's hash."""
    ref = settings.base_ref
    source = {"schema": 1, "base_model": ref.text, "local": ref.path is not None and not ref.hub, "commit": None}
    if ref.hub:
        with suppress(UserError):  # not known
            source["commit"] = ref.commit()
    return source | {"sha256": ref.identity()["sha256"] if ref.gguf else None}


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
    ref = settings.base_ref
    model = ref.load()
    own = add_chatml(ref.raw_tokenizer(), model)
    if own.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"The data's tokenizer has {len(tokenizer)} tokens, that of '{settings.base_model}' {len(own)} or others; "
            "run notebooks/01_filter_data.ipynb again with this base_model."
        )
    check_context(settings, model)
    return model


def check_context(settings: TrainSettings, model: PreTrainedModel) -> None:
    """UserError where rows may be longer than the model reads."""
    if settings.max_length > context_length(model):
        raise UserError(
            f"max_length is {settings.max_length} tokens, but '{settings.base_model}' reads {context_length(model)}; "
            "lower max_length in notebooks 01 and 02."
        )


def weightless_base(settings: TrainSettings, vocabulary: int = 0) -> PreTrainedModel:
    """The base model with so many tokens (0: its own) and without weights.

    UserError where the configuration cannot be read, or training could not use the model.
    """
    kept = Run(settings.run_path).base
    if settings.base_model == TINY:
        size = vocabulary or VOCABULARY
        config: Any = tiny_config(size, settings.max_length, size - 1, size - 2)
    else:  # the base may be gone since it was read
        config = (ModelRef.parse(str(kept)) if holds_model(kept) else settings.base_ref).config()
        config.get_text_config().vocab_size = vocabulary or config.get_text_config().vocab_size
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    check_head(model)
    check_context(settings, model)
    return model
