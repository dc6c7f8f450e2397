"""How much memory training will take, from the model's shape alone: no weight is loaded for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import resolve
from nbutils.core.models import TINY, tiny_config
from nbutils.train.loss import CHUNK

GIB = 2**30
FRAMEWORK_BYTES = int(0.7 * GIB)
"""What a process takes before there is a model: Python, torch and its libraries, or a CUDA context."""

TINY_VOCABULARY = 4096
"""Tokens of `tiny` where its tokenizer has not been trained yet: 4,093 pieces and the three of ChatML."""


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a causal language model that its memory depends on."""

    parameters: int
    vocabulary: int
    hidden: int
    layers: int
    intermediate: int
    gated: bool = True
    """Whether the feed-forward part is gated (Llama, Qwen, Mistral); GPT-2's keeps more of its steps in between."""

    @classmethod
    def of(cls, model: Any) -> ModelShape:
        """The shape of a model, with or without its weights."""
        config = model.config.get_text_config()
        gated = bool(getattr(config, "intermediate_size", 0))
        between = config.intermediate_size if gated else getattr(config, "n_inner", None) or 4 * config.hidden_size
        return cls(
            parameters=sum(p.numel() for p in model.parameters()),
            vocabulary=config.vocab_size,
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            intermediate=between,
            gated=gated,
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, which are kept in float32."""
        return 4 * self.parameters


def empty_model(name: str, revision: str, context: int, vocabulary: int = 0) -> Any:
    """A base model without weights (on torch's `meta` device): what its configuration alone tells.

    `vocabulary` resizes it to a tokenizer's tokens; `context` is the length of `tiny`. UserError where the
    configuration cannot be read.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = _config(name, revision, context, vocabulary or TINY_VOCABULARY)
    if vocabulary:
        config.get_text_config().vocab_size = vocabulary
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@dataclass(frozen=True)
class MemoryNeed:
    """Predicted peak memory of one training process, in bytes."""

    states: int
    """Weights, gradients, the optimizer's moments, DDP's copy of the gradients."""
    activations: int
    """What the backward pass needs of one micro-batch, and the logits of one chunk of the loss."""

    @property
    def total(self) -> int:
        """All of it, with what the framework takes."""
        return self.states + self.activations + FRAMEWORK_BYTES


def memory_need(shape: ModelShape, tokens: int, *, half: bool, processes: int, optimizer: str) -> MemoryNeed:
    """Predicted memory for a micro-batch of so many padded tokens; `half` stands for autocast to fp16 or bf16.

    Counted from what autograd keeps of a Llama layer, as in Korthikanti et al. 2022 (Reducing Activation
    Recomputation): 11 values of the hidden size and 4 of the intermediate size for each token, and no attention
    matrix; under autocast about four fifths of the bytes.
    """
    moments = 0 if optimizer == "sgd" else 2
    states = shape.weight_bytes * (2 + moments + (1 if processes > 1 else 0))
    per_token = 11 * shape.hidden + (4 if shape.gated else 8) * shape.intermediate
    layers = int(4 * (0.8 if half else 1.0) * per_token * shape.layers * tokens)
    logits = 8 * min(CHUNK, tokens) * shape.vocabulary
    head = 4 * shape.vocabulary * shape.hidden + 8 * tokens * shape.hidden
    return MemoryNeed(states, layers + logits + head)


def _config(name: str, revision: str, context: int, vocabulary: int) -> Any:
    from transformers import AutoConfig

    from nbutils.core.fetched import local_copy

    if name == TINY:
        return tiny_config(vocabulary, context, vocabulary - 1, vocabulary - 2)
    path = resolve(name)
    try:
        if name.endswith(".gguf"):
            return AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
        if not path.is_dir():
            path = local_copy("model", name, revision) or path
        if path.is_dir():
            return AutoConfig.from_pretrained(str(path))
        return AutoConfig.from_pretrained(name, **({"revision": revision} if revision else {}))
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"The configuration of the base model '{name}' could not be read: {first} — give a hub id that can be "
            "reached, a folder, a GGUF file, or 'tiny'."
        ) from error
