"""A model folder as one GGUF file for llama.cpp, Ollama and LM Studio: weights in F16 or Q8_0, tokenizer, metadata.

Names, and the order of a head's rows, as llama.cpp's `convert_hf_to_gguf.py` has them. llama.cpp has its own
tokenizers and knows how to split a text by name only (`src/llama-vocab.cpp`, `tokenizer_pre`). Whether a name was the
right one is proven by ids, in `gguf_parity`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import TokenType
from safetensors import safe_open
from tokenizers.normalizers import NFC

from nbutils.core.chat_engine.sampling import Sampling
from nbutils.core.chatml import TEMPLATE
from nbutils.core.errors import UserError
from nbutils.core.files import Json
from nbutils.core.llamacpp import choice
from nbutils.core.run.models import ModelRef, context_length

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
"""transformers' name of an architecture → llama.cpp's."""

THEIR_NAMES = {"temperature": "temp", "repeat_penalty": "penalty_repeat", "repeat_last_n": "penalty_last_n"}
"""What of the sampling a file calls otherwise than llama.cpp's server does."""

SPLITS = {
    r"\\p{N}{1,3}| ?[^\\s": "llama-bpe",
    r"\\p{N}| ?[^\\s": "qwen2",
    '"individual_digits": true': "smollm",
    '"use_regex": true': "gpt-2",
}
"""What tells how a byte-level BPE splits a text, the first that its JSON has → llama.cpp's name for that."""

SENTENCEPIECE = {"Sequence", "Prepend", "Replace", "Metaspace"}
"""Steps of one like SentencePiece's before its merges: all they do is to mark spaces."""

LOWEST = -1e9
"""The score of a piece that no merge makes."""


def check_config(config: PretrainedConfig) -> str:
    """llama.cpp's name of the architecture. UserError for one that no GGUF file is made of."""
    known, act = ARCHITECTURES.get(config.model_type), getattr(config, "hidden_act", None)
    if not known or act != "silu":
        raise UserError(
            f"No GGUF file can be made of a model of the architecture '{config.model_type}' with the activation {act}, "
            f"only of {', '.join(ARCHITECTURES)} with silu; set gguf to []."
        )
    frequencies(config)
    return known


def frequencies(config: PretrainedConfig) -> torch.Tensor | None:
    """By what llama.cpp divides each frequency (D/2,) of the rotary embedding; None for a plain one.

    `dynamic` is plain up to the trained length, where the file's context ends. UserError for a scaling that changes
    more than frequencies.
    """
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    if (kind := rope["rope_type"]) in ("default", "dynamic"):
        return None
    scaled, attention = ROPE_INIT_FUNCTIONS[kind](config, "cpu")  # (D/2,)
    if attention != 1 or config.model_type == "qwen2":
        raise UserError(
            f"No GGUF file can be made of a model whose rotary embedding is scaled by '{kind}': set gguf to []."
        )
    size = head_size(config)
    return 1 / rope["rope_theta"] ** (torch.arange(0, size, 2).float() / size) / scaled


def head_size(config: PretrainedConfig) -> int:
    """D, the size of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def readable_context(config: PretrainedConfig) -> int:
    """Tokens up to which llama.cpp computes what the model does: it slides no window over these architectures."""
    return min(context_length(config), getattr(config, "sliding_window", None) or 2**31)


def write_gguf(file: Path, kind: str, model: Path, words: Json, about: Json) -> list[str]:
    """Writes a model's folder as a GGUF file of the kind `f16` or `q8_0`; the names of tensors that stayed F16 in it.

    `words` (of `vocabulary`) and `about` are metadata by GGUFWriter's names. UserError for an architecture that is not
    known here.
    """
    config, sampling = ModelRef.parse(str(model)).config(), choice(Sampling(), -1)
    architecture = check_config(config)
    writer = gguf.GGUFWriter(file, architecture)
    facts = words | about | sizes(config)
    facts |= {
        "file_type": gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"],
        "quantization_version": gguf.GGML_QUANT_VERSION,
        "chat_template": TEMPLATE,
        "sampling_sequence": ";".join(sampling.pop("samplers")),
    }
    facts |= {f"sampling_{THEIR_NAMES.get(name, name)}": value for name, value in sampling.items()}
    for name, value in facts.items():
        getattr(writer, f"add_{name}")(*(value if isinstance(value, tuple) else [value]))
    kept = []
    for name, array in _tensors(model, config, architecture):
        asked = Kind.F32 if array.ndim == 1 else Kind[kind.upper()]
        if array.shape[-1] % gguf.GGML_QUANT_SIZES[asked][0]:
            asked = Kind.F16
            kept.append(name)
        writer.add_tensor(name, gguf.quants.quantize(array, asked), raw_dtype=asked)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


def bytes_of(parameters: int, kind: str) -> int:
    """Bytes of so many weights in a file of a kind, where all rows can be cut into its blocks."""
    block, size = gguf.GGML_QUANT_SIZES[Kind[kind.upper()]]
    return parameters // block * size


def sizes(config: PretrainedConfig) -> Json:
    """The metadata of an architecture, by the names that GGUFWriter has for it."""
    size = head_size(config)
    return {
        "vocab_size": config.vocab_size,
        "context_length": readable_context(config),
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "key_length": size,
        "value_length": size,
        "rope_dimension_count": size,
        "rope_freq_base": config.rope_parameters["rope_theta"],
        "layer_norm_rms_eps": config.rms_norm_eps,
    }


def _tensors(model: Path, config: PretrainedConfig, architecture: str) -> Iterator[tuple[str, np.ndarray]]:
    """Names and weights in float32, as llama.cpp has them."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    if (divisors := frequencies(config)) is not None:
        yield "rope_freqs.weight", divisors.numpy()
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for own in weights.keys():  # noqa: SIM118
                if own == "lm_head.weight" and config.tie_word_embeddings:
                    continue
                name = names.get_name(own, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise UserError(
                        f"No GGUF file can be made of this model: llama.cpp knows no weight '{own}'; set gguf to []."
                    )
                array = weights.get_tensor(own).float().numpy()
                part = own.split(".")[-2]
                if architecture == "llama" and part in heads:
                    array = interleaved(array, heads[part])
                yield name, array


def interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head in llama.cpp's order: the two of each rotated pair side by side, not half a head apart."""
    pairs = array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> Json:
    """The metadata of a tokenizer for an embedding of that many rows, by the names that GGUFWriter has for it.

    llama.cpp's kinds are `gpt2` (byte-level BPE) and `llama` (SentencePiece's BPE). UserError for a tokenizer that it
    has nothing like.
    """
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    model = data["model"]
    if model["type"] != "BPE":
        raise _unknown(f"is of the kind {model['type']}")
    ids = tokenizer.get_vocab()
    rows = max(rows, *(i + 1 for i in ids.values()))  # a base's tokens may be more than its rows
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [TokenType.UNUSED] * rows
    for piece, i in model["vocab"].items():
        tokens[i], types[i] = piece, TokenType.NORMAL
    for added in data["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], kind
    end, start = tokenizer.eos_token_id, tokenizer.bos_token_id
    found: Json = {"token_list": tokens, "token_types": types}
    found |= dict.fromkeys(("add_bos_token", "add_eos_token", "add_space_prefix"), False)
    found |= {"eos_token_id": end, "eot_token_id": end, "pad_token_id": tokenizer.pad_token_id}
    # None is ever put before a text, as none was in training; but where a file names no BOS, token 11 is one.
    found["bos_token_id"] = end if start is None else start
    reads = json.dumps([data["normalizer"], data["pre_tokenizer"]], ensure_ascii=False)
    if "ByteLevel" in str(data["decoder"]):
        pre = next((name for mark, name in SPLITS.items() if mark in reads), None)
        if not pre or '"add_prefix_space": true' in reads or (data["normalizer"] and not composes(tokenizer)):
            raise _unknown("splits a text in its own way")
        merges = list(map(" ".join, model["merges"]))
        return found | {"tokenizer_model": "gpt2", "tokenizer_pre": pre, "token_merges": merges}
    if not model["byte_fallback"] or "▁" not in reads or set(re.findall(r'"type": "(\w+)"', reads)) - SENTENCEPIECE:
        raise _unknown("is neither a byte-level BPE nor one like SentencePiece's")
    for i, token in enumerate(tokens):
        if re.fullmatch("<0x[0-9A-F]{2}>", token):
            types[i] = TokenType.BYTE
    if tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = TokenType.UNKNOWN
        found["unk_token_id"] = tokenizer.unk_token_id
    # Of two neighbours llama.cpp merges the pair whose whole has the highest score: minus the rank of its merge here.
    # No score of a `tokenizer.model`: there pieces of several spaces, which transformers merges first, have the lowest.
    ranks = {"".join(pair): -float(rank) for rank, pair in reversed([*enumerate(model["merges"])])}
    return found | {
        "tokenizer_model": "llama",
        "tokenizer_pre": "default",
        "token_scores": [ranks.get(token, LOWEST) for token in tokens],
        "add_space_prefix": '"Prepend"' in reads or '"always"' in reads,  # behind a control token too
    }


def composes(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it reads an accent that stands apart as part of its letter (NFC), as no tokenizer of llama.cpp does."""
    return isinstance(tokenizer.backend_tokenizer.normalizer, NFC)


def _unknown(why: str) -> UserError:
    return UserError(
        f"No GGUF file can be made of this model: its tokenizer {why}, and llama.cpp has none like it; set gguf to []."
    )
