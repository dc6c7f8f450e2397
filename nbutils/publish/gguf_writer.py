"""A model folder as one GGUF file for llama.cpp, Ollama and LM Studio: weights in F16 or Q8_0, tokenizer, metadata.

Names, and the order of a head's rows, as llama.cpp's `convert_hf_to_gguf.py` has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from safetensors import safe_open

from nbutils.core.chatml import TEMPLATE
from nbutils.core.errors import UserError
from nbutils.core.files import Json
from nbutils.core.llamacpp import SAMPLERS
from nbutils.core.run.models import ModelRef, context_length
from nbutils.publish.gguf_vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
"""transformers' name of an architecture → llama.cpp's."""

KINDS = ("f16", "q8_0")
"""What weights are written as."""


def check_config(config: PretrainedConfig) -> str:
    """llama.cpp's name of the architecture. UserError for one that no GGUF file is made of."""
    known = ARCHITECTURES.get(config.model_type)
    act = getattr(config, "hidden_act", "silu")
    if not known or act != "silu":
        found = config.model_type if not known else f"{config.model_type} with the activation {act}"
        raise UserError(
            f"No GGUF file can be made of a model of the architecture '{found}', only of {', '.join(ARCHITECTURES)}; "
            "set gguf to []."
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


def write_gguf(file: Path, kind: str, model: Path, words: Vocabulary, sampling: Json, about: Json) -> list[str]:
    """Writes the model's folder as a GGUF file of the kind `f16` or `q8_0`; the names of tensors that stayed F16 in it.

    `sampling` are the settings of `generation_config.json`, `about` further metadata by GGUFWriter's names. UserError
    for an architecture that is not known here.
    """
    config = ModelRef.parse(str(model)).config()
    architecture = check_config(config)
    writer = gguf.GGUFWriter(file, architecture)
    facts = (
        about
        | sizes(config)
        | {
            "file_type": gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"],
            "quantization_version": gguf.GGML_QUANT_VERSION,
            "chat_template": TEMPLATE,
            "sampling_sequence": ";".join(SAMPLERS),
            "sampling_temp": sampling["temperature"],
            "sampling_top_p": sampling["top_p"],
            "sampling_top_k": sampling["top_k"],
            "sampling_min_p": 0.0,
            "sampling_penalty_repeat": sampling["repetition_penalty"],
            "sampling_penalty_last_n": -1,
        }
    )
    for name, value in facts.items():
        getattr(writer, f"add_{name}")(*(value if isinstance(value, tuple) else [value]))
    words.write(writer)
    kept = []
    for name, array in _tensors(model, config, architecture):
        asked = Kind.F32 if array.ndim == 1 else Kind[kind.upper()]
        if asked is Kind.Q8_0 and array.shape[-1] % gguf.GGML_QUANT_SIZES[asked][0]:
            asked = Kind.F16
            kept.append(name)
        writer.add_tensor(name, gguf.quants.quantize(array, asked), raw_dtype=asked)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


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
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
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
