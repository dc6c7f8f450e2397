"""The models of a table: which file or revision each one is, and opening it for scoring."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbutils.core.errors import UserError
from nbutils.core.fetched import entry, local_copy
from nbutils.core.files import resolve, sha256_of_file, sha256_of_json, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from nbutils.evaluate.shared_prefix import SharedPrefixLM

USED = ("base", "run", "final")
"""Names that the run's own models have, or that every run's model has: of a peer they would say nothing."""
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
    found = []
    for peer in peers:
        path = resolve(peer)
        if peer.endswith(".gguf") and not path.is_file():
            raise UserError(f"The GGUF file {peer} that peers names does not exist; give the path of one that does.")
        source, _, revision = (peer, "", "") if path.exists() else peer.partition("@")
        found.append(Model("", "peer", source, revision))
    return models + _with_names(found)


def _with_names(peers: Sequence[Model]) -> list[Model]:
    """Peers under the shortest of their names that nothing else in the table has. UserError where two share all."""
    choices = [_names(peer) for peer in peers]
    short = [names[0] for names in choices]
    named = []
    for peer, names in zip(peers, choices, strict=True):
        alone = names[0] not in USED and short.count(names[0]) == 1
        named.append(replace(peer, name=names[0] if alone else names[-1]))
    files = [items_name(peer.name, "") for peer in named]
    twice = next((peer for peer, file in zip(named, files, strict=True) if files.count(file) > 1), None)
    if twice is not None:
        raise UserError(
            f"Two of the peers would both be called '{twice.name}'; list one of them, or rename its folder."
        )
    return named


def _names(peer: Model) -> list[str]:
    """What a peer may be called: its file's or folder's name, or with the folders above it (run/stage/name)."""
    path = resolve(peer.source)
    if not path.exists():
        return [peer.source, f"{peer.source}@{peer.revision}" if peer.revision else peer.source]
    parts = Path(os.path.abspath(path)).parts[1:]
    if peer.gguf:
        parts = (*parts[:-1], path.stem)
    return [parts[-1], "/".join(parts[-3:])]


def items_name(model: str, task: str) -> str:
    """The file of one model's items of one task."""
    return f"{model.replace('/', '__')}--{task}.parquet"


def named(model: Model) -> dict[str, Any]:
    """A model's name, role, place and revision in a table."""
    path = resolve(model.source)
    return {**asdict(model), "source": shown(path) if path.exists() else model.source}


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


def check_models(models: Sequence[Model], *, max_length: int, chat_template: bool) -> None:
    """UserError for the first model that could not be scored, before any is: their configurations alone are read.

    `chat_template` asks for a tokenizer that has one.
    """
    for model in models:
        _config(model, max_length)
        if chat_template and not tokenizer_of(model).chat_template:
            raise UserError(
                f"The model {model.name} has no chat template: set apply_chat_template to false, or leave it out of "
                "peers."
            )


def open_model(model: Model, *, max_length: int, precision: str, device: str, tokens_per_batch: int) -> SharedPrefixLM:
    """The model ready for scoring. UserError where it cannot be loaded, or is no causal language model."""
    from nbutils.evaluate.shared_prefix import SharedPrefixLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    _config(model, max_length)
    where, options = _place(model)
    if model.gguf:  # HFLM would ask AutoTokenizer, which some releases of transformers answer with other ids
        options["tokenizer"] = tokenizer_of(model)
    dtype = {"auto": "float32", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
    try:
        lm = SharedPrefixLM(
            where, device=device, dtype=dtype, max_length=max_length, tokens_per_batch=tokens_per_batch, **options
        )
    except (OSError, ValueError) as error:
        raise _not_found(model, error) from error
    assert lm.way  # tried out now: a model that isn't causal stops here, before any task
    return lm


def tokenizer_of(model: Model) -> PreTrainedTokenizerBase:
    """The model's tokenizer as its makers left it."""
    from nbutils.core.models import raw_tokenizer

    return raw_tokenizer(str(model.path) if model.path.exists() else model.source, model.revision)


def _place(model: Model) -> tuple[str, dict[str, Any]]:
    """What transformers is asked for, and with which options."""
    path = model.path
    if model.gguf:
        return str(path.parent), {"gguf_file": path.name}
    return (str(path) if path.is_dir() else model.source), {"revision": model.revision or "main"}


def _config(model: Model, max_length: int) -> Any:
    """The model's configuration. UserError where it is not causal, or reads fewer tokens than all are to read."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    where, options = _place(model)
    try:
        config = AutoConfig.from_pretrained(where, **options)
    except (OSError, ValueError) as error:
        raise _not_found(model, error) from error
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"The model {model.source} ({config.model_type}) is not a causal language model; give one that is."
        )
    trained_length = int(getattr(config.get_text_config(), "max_position_embeddings", max_length) or max_length)
    if trained_length < max_length:
        raise UserError(
            f"The model {model.name} reads {trained_length} tokens at once, and max_length is {max_length}: all models "
            f"of a table get the same length, so set max_length to {trained_length} or leave that model out."
        )
    return config


def facts_of(model: Model, lm: SharedPrefixLM) -> dict[str, Any]:
    """What a table says about a model; `identity` is what was measured, whatever was asked for."""
    return {
        **named(model),
        "identity": identity(model) | _commit_of_copy(model),
        "parameters": int(lm.model.num_parameters()),
        "adds_bos": bool(lm.tok_encode("a")[:1] == [lm.tokenizer.bos_token_id]),
        "scored_as": lm.way,
    }


def _commit_of_copy(model: Model) -> dict[str, str]:
    """The commit of a copy that `python -m nbutils fetch` collected, as its manifest has it."""
    found = None if resolve(model.source).exists() else entry("model", model.source, model.revision)
    return {"commit": str(found[1]["commit"])} if found else {}


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
