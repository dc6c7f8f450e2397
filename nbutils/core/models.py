"""Loading a base model and its tokenizer: hub id, folder, GGUF file, or the embedded `tiny`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbutils.core.chatml import add_chatml
from nbutils.core.errors import UserError
from nbutils.core.fetched import local_copy
from nbutils.core.files import resolve, shown

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

TINY = "tiny"


def load_tokenizer(name: str, revision: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer of a base model, with ChatML added. UserError where it cannot be found or read."""
    return add_chatml(raw_tokenizer(name, revision))


def raw_tokenizer(name: str, revision: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer of a base model as it comes: its length tells which rows of an embedding ChatML adds."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # Of a GGUF file, AutoTokenizer of transformers 5.0 to 5.5 makes a CodeLlamaTokenizer, with other ids.
    kind = PreTrainedTokenizerFast if name.endswith(".gguf") else AutoTokenizer
    tokenizer: PreTrainedTokenizerBase = _load(kind, name, revision)
    if name.endswith(".gguf") and "ByteLevel" in str(tokenizer.backend_tokenizer.decoder):
        # transformers 5.0 makes a special token of bytes that a byte-level BPE does not know; later ones drop them.
        tokenizer.backend_tokenizer.model.unk_token = None
    return tokenizer


def load_model(name: str, revision: str = "") -> PreTrainedModel:
    """A causal language model in float32 on the CPU. UserError where it cannot be found, read, or isn't causal."""
    import torch
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = _load(AutoModelForCausalLM, name, revision, dtype=torch.float32)
    return _dequantized(model)


@contextmanager
def without_loading_bar() -> Iterator[None]:
    """Without transformers' bar for reading weights, which would stay in executed notebooks; the hub keeps its own."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    enable_progress_bars()  # the line above has switched the hub's off too
    try:
        yield
    finally:
        logging.enable_progress_bar()


def load_chat_model(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder that the training stage wrote, the model in evaluation mode."""
    from transformers import AutoTokenizer

    if not (folder / "config.json").is_file():
        raise UserError(
            f"{shown(folder)} holds no model (config.json is missing); run notebooks/02_train_sft.ipynb first."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return load_model(str(folder)).eval(), tokenizer


def tiny_config(vocabulary: int, context: int, pad: int, eos: int) -> LlamaConfig:
    """The embedded model's architecture: a Llama of 4 layers and hidden size 128."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=pad,
        bos_token_id=None,
        eos_token_id=eos,
        initializer_range=0.04,
    )


def tiny_model(tokenizer: PreTrainedTokenizerBase, context: int, seed: int) -> PreTrainedModel:
    """An untrained `tiny` model around a tokenizer; the same weights for the same seed."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(tiny_config(len(tokenizer), context, tokenizer.pad_token_id, tokenizer.eos_token_id))


def context_length(model: PreTrainedModel) -> int:
    """Tokens that the model was trained to read at once."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 1024))


def _dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """A model from a GGUF file without its mark: its weights are plain float32, but transformers would not save it."""
    if getattr(model, "quantization_method", None) == "gguf":
        del model.hf_quantizer, model.quantization_method, model.config.quantization_config
        model.is_quantized = False
    return model


def _load(auto: Any, name: str, revision: str, **options: Any) -> Any:
    path = resolve(name)
    if name.endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"The GGUF file {name} does not exist; give the path of one that does as base_model.")
        try:
            return auto.from_pretrained(str(path.parent), gguf_file=path.name, **options)
        except Exception as error:  # a file that was cut short fails in a dozen ways, all deep inside the reader
            raise UserError(
                f"The GGUF file {name} could not be read ({_first_line(error)}); download it again, or convert it anew."
            ) from error
    if not path.is_dir():
        path = local_copy("model", name, revision) or path
    source: str = str(path) if path.is_dir() else name
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"The folder {name} holds no model: config.json is missing; give a model folder as base_model.")
    if revision and not path.is_dir():
        options["revision"] = revision
    try:
        return auto.from_pretrained(source, **options)
    except Exception as error:  # damaged weights raise neither OSError nor ValueError
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise UserError(
            f"The model '{name}' could not be loaded{offline}: {_first_line(error)} — give a hub id that can be "
            "reached, a folder, a GGUF file, or 'tiny'."
        ) from error


def _first_line(error: Exception) -> str:
    """What an error says first, with its type where that tells more than the words."""
    words = str(error).strip().split("\n")[0][:200]
    return words if isinstance(error, OSError | ValueError) and words else f"{type(error).__name__}: {words}"
