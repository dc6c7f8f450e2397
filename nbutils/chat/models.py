"""A model that one can talk to: loaded, on its device, with ChatML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbutils.core.chat_engine.template import has_own_template
from nbutils.core.chat_engine.window import keeps_keys
from nbutils.core.chatml import IM_END, IM_START, add_chatml
from nbutils.core.hardware import choose_device, device_report
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, or in llama.cpp's server, its tokenizer, one line that says what and where it is, and the
    run whose rows it was trained on.
    """

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    line: str
    run: Run | None = None


def load(name: str, run: Path | None = None) -> LoadedModel:
    """Loads a model for talking: CUDA of compute capability 7.0 or newer, else MPS, else CPU; float32.

    A tokenizer without any chat template gets ChatML; one with its own keeps it. UserError where the model cannot be
    found or read.
    """
    ref = ModelRef.parse(name, run)
    model, tokenizer = ref.load(), ref.raw_tokenizer()
    own = has_own_template(tokenizer)
    if not own and not {IM_START, IM_END} <= tokenizer.get_vocab().keys():
        add_chatml(tokenizer, model)
    device, why = choose_device(device_report())
    so_far = f" so far ({ref.path.name})" if name == "final" and ref.path and ref.path.name != name else ""
    line = f"{name}{so_far}: {model.num_parameters():,} parameters, {why}"
    line += ", talked to in its own chat template" if own else ""
    line += "" if keeps_keys(model) else ", no key/value cache: each token takes a reading of the whole conversation"
    found = Run.around(ref.path) if ref.path else None
    trained = found if found and ref.path != found.base else None
    return LoadedModel(name, model.to(device).eval(), tokenizer, line, trained)
