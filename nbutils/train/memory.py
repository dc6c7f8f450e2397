"""How much memory training will take, from the model's shape alone: no weight is loaded for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from nbutils.core.errors import UserError
from nbutils.core.run.layout import Run, holds_model
from nbutils.core.run.models import TINY, VOCABULARY, ModelRef, context_length, tiny_config
from nbutils.train.loss import CHUNK, check_head
from nbutils.train.settings import OPTIMIZERS, TrainSettings

GIB = 2**30
FRAMEWORK_BYTES = int(0.7 * GIB)
"""What a process takes before there is a model: Python, torch and its libraries, or a CUDA context."""


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


def base_shape(settings: TrainSettings, vocabulary: int = 0) -> ModelShape:
    """The shape of the base model with so many tokens (0: its own), from its configuration alone.

    UserError where the configuration cannot be read, or training could not use the model.
    """
    config = _config(settings, vocabulary or VOCABULARY)
    if vocabulary:
        config.get_text_config().vocab_size = vocabulary
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    check_head(model)
    if settings.max_length > context_length(model):
        raise UserError(
            f"max_length is {settings.max_length} tokens, but '{settings.base_model}' reads {context_length(model)}; "
            "lower max_length."
        )
    return ModelShape.of(model)


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
    states = shape.weight_bytes * (2 + OPTIMIZERS[optimizer].moments + (1 if processes > 1 else 0))
    per_token = 11 * shape.hidden + (4 if shape.gated else 8) * shape.intermediate
    layers = int(4 * (0.8 if half else 1.0) * per_token * shape.layers * tokens)
    logits = 8 * min(CHUNK, tokens) * shape.vocabulary
    head = 4 * shape.vocabulary * shape.hidden + 8 * tokens * shape.hidden
    return MemoryNeed(states, layers + logits + head)


def _config(settings: TrainSettings, vocabulary: int) -> Any:
    if settings.base_model == TINY:
        return tiny_config(vocabulary, settings.max_length, vocabulary - 1, vocabulary - 2)
    kept = Run(settings.run_path).base
    if holds_model(kept):  # the base was read before, and may be gone since
        return ModelRef.parse(str(kept)).config()
    return ModelRef.parse(settings.base_model, revision=settings.base_revision).config()
