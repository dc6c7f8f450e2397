"""The base model that training starts from, kept in `train/base/` with its tokenizer."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nbutils.core.chatml import add_chatml
from nbutils.core.errors import UserError
from nbutils.core.files import Json, read_json, replaced, shown, write_json
from nbutils.core.run.layout import Run, holds_model
from nbutils.core.run.models import (
    TINY,
    VOCABULARY,
    ModelRef,
    context_length,
    tiny_config,
    tiny_model,
)
from nbutils.train.loss import check_head
from nbutils.train.settings import TrainSettings

SOURCE = "source.json"
"""In the base's folder: its provenance. The model card prints it."""


def ensure_base(settings: TrainSettings, folder: Path, data: Path) -> Path:
    """Writes the base model with ChatML into `folder` unless it is there, and returns the folder.

    UserError where the data was tokenised for another base, or holds longer rows than the model can read.
    """
    if not holds_model(folder):
        tokenizer = without_additions(data_tokenizer(settings, data))
        model = make_base(settings, tokenizer)
        with replaced(folder) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            write_json(partial / SOURCE, source_of(settings))
    return folder


def source_of(settings: TrainSettings) -> Json:
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


def without_additions(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer without the tokens, such as BOS, that it would put around a text: no row of the data has them.

    So every later reader of the trained model, an evaluation too, gives it the ids that it was trained on.
    """
    if tokenizer("")["input_ids"]:
        tokenizer.add_bos_token = tokenizer.add_eos_token = False
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A", "$A $B", [])
    return tokenizer


def make_base(settings: TrainSettings, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The untrained `tiny`, or the given base with its embedding resized for ChatML, in float32 on the CPU."""
    if settings.base_model == TINY:
        return tiny_model(tokenizer, settings.max_length, settings.seed)
    weightless_base(settings)
    ref = settings.base_ref
    model = ref.load()
    if add_chatml(ref.raw_tokenizer(), model).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"The data's tokenizer is another than that of '{settings.base_model}'; "
            "run notebooks/01_filter_data.ipynb again with this base_model."
        )
    return model


def check_config(settings: TrainSettings, config: PretrainedConfig) -> None:
    """UserError where a configuration contradicts itself, or rows may be longer than the model reads."""
    text, longest = config.get_text_config(), context_length(config)
    heads = getattr(text, "num_attention_heads", 1)
    shared = getattr(text, "num_key_value_heads", None) or heads
    if heads % shared:
        raise UserError(
            f"The configuration of base_model '{settings.base_model}' cannot be right: its {heads} num_attention_heads "
            f"cannot share {shared} num_key_value_heads evenly; give the config.json that belongs to its weights."
        )
    if settings.max_length > longest:
        raise UserError(
            f"max_length is {settings.max_length} tokens, but '{settings.base_model}' reads {longest}; "
            "lower max_length in notebooks 01 and 02."
        )


def weightless_base(settings: TrainSettings) -> PreTrainedModel:
    """The base model without weights. UserError where it cannot be read, or training could not use it."""
    kept = Run(settings.run_path).base  # the base may be gone since it was read
    ref = ModelRef.parse(str(kept)) if holds_model(kept) else settings.base_ref
    config = ref.config() if ref.text != TINY else tiny_config(VOCABULARY, settings.max_length, 0, 0)
    check_config(settings, config)
    if ref.path:
        model = ref.load("meta")
    else:
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
        except Exception as error:  # an architecture's own check of its sizes
            raise ref.unreadable(error) from error
    check_head(model)
    return model
