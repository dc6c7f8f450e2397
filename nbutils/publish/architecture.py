"""A model's parameters and context, computed from its config and the headers of its weight files."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from nbutils.publish.gguf_writer import ARCHITECTURES, head_size

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PARTS = (
    ("embed", "token embedding"),
    ("wte", "token embedding"),
    ("wpe", "position embedding"),
    ("lm_head", "output head"),
    ("norm", "norms"),
    ("ln_", "norms"),
    ("attn", "attention"),
    ("mlp", "feed-forward"),
)
"""Which part of a model a weight belongs to, by the first fragment that its name contains."""

EXTENSIONS = {
    "dynamic": (
        "NTK-aware RoPE, with one base for the whole extended length",
        'longer.rope_parameters["rope_theta"] *= {factor}',
        "--rope-freq-base {base}",
    ),
    "yarn": (
        "YaRN, Peng et al. 2023",
        'longer.rope_parameters.update(rope_type="yarn", factor=2.0, original_max_position_embeddings=trained)',
        "--rope-scaling yarn --rope-scale 2 --yarn-orig-ctx {trained}",
    ),
    "linear": (
        "position interpolation, Chen et al. 2023",
        'longer.rope_parameters.update(rope_type="linear", factor=2.0)',
        "--rope-scaling linear --rope-scale 2",
    ),
}
"""How a model is made to read twice its trained length: what that is called, the Python that says so, and llama.cpp's
options.

The code changes the config `longer`, whose rotary module is then the extended one; `trained` is the trained length.
"""


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Name → shape of every weight in a model folder, from the files' headers; no weight is read."""
    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as weights:
            shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    return shapes


def parameter_counts(shapes: dict[str, list[int]]) -> Counter[str]:
    """Parameters by part of the model; their sum is the model's size. Tied weights are stored and counted once."""
    counts = Counter[str]()
    for name, shape in shapes.items():
        part = next((part for fragment, part in PARTS if fragment in name), "other")
        counts[part] += math.prod(shape)
    return counts


def extension(config: PretrainedConfig, kind: str) -> tuple[str, str, str] | None:
    """The chat's `context_extension` in plain transformers and llama.cpp (EXTENSIONS); None where the model takes none.

    `dynamic` is NTK-aware scaling with the base fixed for twice the length (bloc97, emozilla 2023; transformers'
    `modeling_rope_utils.py`, `dynamic` at `seq_len` = 2 × the trained length): the base times 3 to the power of
    D / (D - 2), where D is the size of a head. The others are transformers' own.
    """
    if config.model_type not in ARCHITECTURES or kind not in EXTENSIONS:
        return None
    rope, size = config.rope_parameters, head_size(config)
    if rope["rope_type"] != "default":
        return None
    factor = round(3 ** (size / (size - 2)), 6)
    values = {"factor": factor, "base": rope["rope_theta"] * factor, "trained": config.max_position_embeddings}
    name, code, options = EXTENSIONS[kind]
    return name, code.format(**values), options.format(**values)
