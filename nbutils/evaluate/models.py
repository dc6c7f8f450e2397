"""The models of a table, and opening each for scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nbutils.core.errors import UserError
from nbutils.core.files import Json, shown
from nbutils.core.run.layout import Run, holds_model
from nbutils.core.run.models import ModelRef

if TYPE_CHECKING:
    from nbutils.evaluate.shared_prefix import SharedPrefixLM


@dataclass(frozen=True)
class Model:
    """A model to be measured: `name` in tables, `role` (`base`, `run`, `peer`), and what it is."""

    name: str
    role: str
    ref: ModelRef

    @property
    def facts(self) -> dict[str, str]:
        """Its name, role, place and revision in a table."""
        source = self.ref.hub or next(_ends_of(self.ref))  # it is published: nothing of this machine's folders
        return {"name": self.name, "role": self.role, "source": source, "revision": self.ref.revision}


def models_of_run(run: Run, peers: Sequence[str]) -> list[Model]:
    """The untrained base first, the run's trained model, then peers: hub ids (`id@revision`), folders or GGUF files.

    A local peer is called by the last three parts of its path, or by more where that name is taken.
    """
    own = {"base": run.base, "run": run.model()}
    if not holds_model(own["run"]):
        raise UserError(f"{shown(own['run'])} holds no model: run notebooks/02_train_sft.ipynb first.")
    models = [Model(name, name, ModelRef.parse(str(path))) for name, path in own.items() if holds_model(path)]
    for ref in map(ModelRef.parse, peers):
        taken = {model.name for model in models}
        free = (name for name in _ends_of(ref) if not ref.hub and name not in taken)
        models.append(Model(next(free, ref.text), "peer", ref))
    return models


def _ends_of(ref: ModelRef) -> Iterator[str]:
    """The last three parts of a model's path, then the last four, and so on."""
    _, *parts = (ref.path or Path(ref.text)).absolute().parts
    return ("/".join(parts[-count:]) for count in range(3, max(4, len(parts) + 1)))


def check_model(model: Model, *, max_length: int, chat_template: bool) -> None:
    """UserError for a model that could not be scored, before any is: its configuration alone is read.

    `chat_template` asks for a tokenizer that has one.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = model.ref.config()
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"The model {model.ref.text} ({config.model_type}) is not a causal language model; give one that is."
        )
    length = int(getattr(config.get_text_config(), "max_position_embeddings", max_length) or max_length)
    if length < max_length:
        raise UserError(
            f"The model {model.name} reads {length} tokens at once, and max_length is {max_length}: all models of "
            f"a table get the same length, so set max_length to {length} or leave that model out."
        )
    if chat_template and not model.ref.raw_tokenizer().chat_template:
        raise UserError(
            f"The model {model.name} has no chat template: set apply_chat_template to false, or leave it out of peers."
        )


def open_model(model: Model, device: str, max_length: int, precision: str, tokens_per_batch: int = 0) -> SharedPrefixLM:
    """The model ready for scoring. UserError where it cannot be loaded, or is no causal language model."""
    from nbutils.evaluate.shared_prefix import SharedPrefixLM

    model.ref.load("meta")  # HFLM would put random numbers where its files lack weights
    where, options = model.ref.source
    if model.ref.gguf:  # HFLM would ask AutoTokenizer, which some releases of transformers answer with other ids
        options = options | {"tokenizer": model.ref.raw_tokenizer()}
    dtype = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
    try:
        lm = SharedPrefixLM(
            where, device=device, dtype=dtype, max_length=max_length, tokens_per_batch=tokens_per_batch, **options
        )
    except (OSError, ValueError) as error:
        raise model.ref.unreadable(error) from error
    assert lm.strategy  # tried out now: a model that isn't causal stops here, before any task
    return lm


def facts_of(model: Model, lm: SharedPrefixLM) -> Json:
    """What a table says about a model; `identity` is what was measured, whatever was asked for."""
    return {
        **model.facts,
        "identity": model.ref.identity(),
        "parameters": lm.model.num_parameters(),
        "adds_bos": lm.tok_encode("a")[:1] == [lm.tokenizer.bos_token_id],
        "scored_as": lm.strategy,
    }
