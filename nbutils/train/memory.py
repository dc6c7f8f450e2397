"""How much memory training will take, from the model's configuration alone: no weight is loaded for it."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedModel

from nbutils.train.loss import CHUNK
from nbutils.train.settings import OPTIMIZERS

GIB = 2**30
FRAMEWORK_BYTES = int(0.7 * GIB)
"""What a process takes before there is a model: Python, torch and its libraries, or a CUDA context."""


class MemoryNeed(NamedTuple):
    """Predicted peak memory of one training process, in bytes."""

    states: int
    """Weights, gradients, the optimizer's moments, DDP's copy of the gradients."""
    activations: int
    """What the backward pass needs of one micro-batch, and the logits of one chunk of the loss."""

    @property
    def total(self) -> int:
        """All of it, with what the framework takes."""
        return self.states + self.activations + FRAMEWORK_BYTES


def memory_need(model: PreTrainedModel, tokens: int, *, half: bool, processes: int, optimizer: str) -> MemoryNeed:
    """Predicted memory for a micro-batch of so many padded tokens; `half` stands for autocast to fp16 or bf16.

    Counted from what autograd keeps of a Llama layer, as in Korthikanti et al. 2022 (Reducing Activation
    Recomputation): 11 values of the hidden size and 4 of the intermediate size for each token, and no attention
    matrix; under autocast about four fifths of the bytes. A feed-forward part without a gate, as GPT-2's, keeps 8.
    """
    config = model.config.get_text_config()
    hidden, vocabulary = config.hidden_size, config.vocab_size
    gated = getattr(config, "intermediate_size", 0)
    between = 4 * gated or 8 * (getattr(config, "n_inner", None) or 4 * hidden)
    states = 4 * model.num_parameters() * (2 + OPTIMIZERS[optimizer] + int(processes > 1))
    layers = int(4 * (0.8 if half else 1.0) * (11 * hidden + between) * config.num_hidden_layers * tokens)
    logits = 8 * min(CHUNK, tokens) * vocabulary
    head = 4 * vocabulary * hidden + 8 * tokens * hidden
    return MemoryNeed(states, layers + logits + head)
