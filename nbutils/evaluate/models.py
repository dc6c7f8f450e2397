"""The models of a table: which file or revision each one is, and opening it for scoring."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbutils.core.errors import UserError
from nbutils.core.fetched import local_copy
from nbutils.core.files import resolve, sha256_of_file, sha256_of_json, shown

if TYPE_CHECKING:
    from nbutils.evaluate.shared_prefix import SharedPrefixLM

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.json", "*.jinja", "*.model", "*.txt")
"""Files of a model folder on which its answers depend."""


@dataclass(frozen=True)
class Model:
    """A model to be measured: `name` in tables, `role` (`base`, `run`, `peer`), where it is, and its revision."""

    name: str
    role: str
    source: str
    revision: str = ""

    @property
    def gguf(self) -> bool:
        """Whether the model is one GGUF file."""
        return self.source.endswith(".gguf")

    @property
    def path(self) -> Path:
        """Where the model lies, if it is on this machine: as named, or collected by `python -m nbutils fetch`."""
        path = resolve(self.source)
        return path if path.exists() else local_copy("model", self.source, self.revision) or path


def models_of_run(run: Path, trained: Path, peers: Sequence[str]) -> list[Model]:
    """The untrained base first, the run's trained model, then peers: hub ids (`id@revision`), folders or GGUF files."""
    base = run / "train" / "base"
    models = []
    if (base / "config.json").is_file():
        models.append(Model("base", "base", str(base)))
    if not (trained / "config.json").is_file():
        raise UserError(f"{shown(trained)} holds no model: run notebooks/02_train_sft.ipynb first.")
    models.append(Model("run", "run", str(trained)))
    for peer in peers:
        path = resolve(peer)
        source, _, revision = (peer, "", "") if path.exists() else peer.partition("@")
        if peer.endswith(".gguf") and not path.is_file():
            raise UserError(f"The GGUF file {peer} that peers names does not exist; give the path of one that does.")
        models.append(Model(Path(source).stem if path.exists() else source, "peer", source, revision))
    return models


def identity(model: Model) -> dict[str, str]:
    """What makes a model this one: the hash of its files, or the hub's commit."""
    path = model.path
    if path.is_file():
        return {"sha256": _hash(path)}
    if path.is_dir():
        files = sorted({file for pattern in WEIGHTS for file in path.glob(pattern)})
        return {"sha256": sha256_of_json({file.name: _hash(file) for file in files})}
    from huggingface_hub import hf_hub_download

    try:
        config = Path(hf_hub_download(model.source, "config.json", revision=model.revision or None))
    except Exception as error:  # the hub's client raises a dozen types, requests' among them
        raise _not_found(model, error) from error
    return {"hub": model.source, "commit": config.parent.name}


def open_model(model: Model, *, max_length: int, precision: str, device: str, tokens_per_batch: int) -> SharedPrefixLM:
    """The model ready for scoring. UserError where it cannot be loaded, or is no causal language model."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from nbutils.evaluate.shared_prefix import SharedPrefixLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    path = model.path
    options: dict[str, Any] = {"revision": model.revision or "main"}
    where = str(path) if path.is_dir() else model.source
    if model.gguf:
        where, options = str(path.parent), {"gguf_file": path.name}
    try:
        config = AutoConfig.from_pretrained(where, **options)
        if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise UserError(
                f"The model {model.source} ({config.model_type}) is not a causal language model; give one that is."
            )
        dtype = {"auto": "float32", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
        lm = SharedPrefixLM(
            where, device=device, dtype=dtype, max_length=max_length, tokens_per_batch=tokens_per_batch, **options
        )
    except (OSError, ValueError) as error:
        raise _not_found(model, error) from error
    trained_length = int(getattr(config.get_text_config(), "max_position_embeddings", max_length) or max_length)
    if trained_length < max_length:
        raise UserError(
            f"The model {model.name} reads {trained_length} tokens at once, and max_length is {max_length}: all models "
            f"of a table get the same length, so set max_length to {trained_length} or leave that model out."
        )
    assert lm.way  # tried out now: a model that isn't causal stops here, before any task
    return lm


def facts_of(model: Model, lm: SharedPrefixLM) -> dict[str, Any]:
    """What a table says about a model."""
    return {
        **asdict(model),
        "source": shown(resolve(model.source)) if resolve(model.source).exists() else model.source,
        "parameters": int(lm.model.num_parameters()),
        "adds_bos": bool(lm.tok_encode("a")[:1] == [lm.tokenizer.bos_token_id]),
        "scored_as": lm.way,
    }


def _hash(path: Path) -> str:
    """The hash of a file, which is read again only after a change."""
    stat = path.stat()
    return _hash_once(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _hash_once(path: Path, _changed: int, _size: int) -> str:
    return sha256_of_file(path)


def _not_found(model: Model, error: Exception) -> UserError:
    first = str(error).strip().split("\n")[0][:160]
    return UserError(
        f"The model '{model.source}' could not be loaded: {first} — give a hub id that can be reached, a folder, or a "
        "GGUF file, or take it from peers."
    )
