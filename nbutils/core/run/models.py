"""What a model reference is, and loading what it means: a name in a run, a folder, a GGUF file, a hub id, or `tiny`.

`tiny` is the embedded base model: a small Llama made from nothing, and a tokenizer trained on the run's own texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import huggingface_hub
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nbutils.core.chatml import add_chatml
from nbutils.core.errors import UserError
from nbutils.core.fetched import entry, local_copy
from nbutils.core.files import Json, hash_of, resolve, sha256_of_json, shown
from nbutils.core.network import hub_answers, offline
from nbutils.core.run.layout import Run, holds_model, is_run_model

if TYPE_CHECKING:
    from transformers import LlamaConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TINY = "tiny"

PIECES = 4093
VOCABULARY = PIECES + 3
"""Entries of the vocabulary, with the three control tokens of ChatML."""

WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
"""What DistributedDataParallel, `torch.compile` and PEFT put in front of the names of weights."""

MODEL_FILES = ("*.safetensors", "*.bin", "*.gguf", "*.json", "*.jinja", "*.model", "*.txt")
"""Files of a model's folder on which its answers depend; folders inside it are others' business."""

TOKENIZER_FILES = (
    "tokenizer*", "*.model", "*.jinja", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "config.json",
)  # fmt: skip
"""Files of a model's folder that make its tokenizer (`config.json` names its class)."""


@dataclass(frozen=True)
class ModelRef:
    """A model as people name it. `path`: where it is on this machine; None for `tiny` and what is on the hub alone.

    `hub`: its id there, '' for local ones.
    """

    text: str
    path: Path | None = None
    hub: str = ""
    revision: str = ""

    @classmethod
    def parse(cls, text: str, run: Path | None = None, revision: str = "") -> ModelRef:
        """The model behind a name: `tiny`, one of a run (`final`, `base`, `step-000500`), a folder, a GGUF file, or a
        hub id (`id@revision`; `revision` wins). A run's folder means its trained model.

        UserError for a name of a run that has no such model, and for a folder or file that is none.
        """
        if text == TINY:
            return cls(text)
        if run is not None and is_run_model(text):
            known = Run(run).models()
            if text in known:
                return cls(text, known[text])
            raise UserError(
                f"{shown(run)} holds no model '{text}' (found: {', '.join(known) or 'none'}); run "
                "notebooks/02_train_sft.ipynb first."
            )
        path = resolve(text)
        if text.endswith(".gguf"):
            if not path.is_file():
                raise UserError(f"The GGUF file {text} does not exist; give the path of one that does.")
            return cls(text, path)
        if path.is_dir():
            return cls(text, _model_in(path))
        hub, _, named = text.partition("@")
        revision = revision or named
        return cls(text, local_copy("model", hub, revision), hub, revision)

    @property
    def gguf(self) -> bool:
        """Whether the model is one GGUF file."""
        return self.path is not None and self.path.suffix == ".gguf"

    def files(self, patterns: tuple[str, ...] = MODEL_FILES) -> dict[str, str]:
        """File name → hash of what a local model is made of: the GGUF file, or those in its folder that fit.

        Nothing for `tiny` or a hub id: their names say which they are.
        """
        if self.path is None or self.hub:
            return {}
        found = [self.path]
        if not self.gguf:
            found = [file for file in sorted(self.path.iterdir()) if file.is_file() and any(map(file.match, patterns))]
        return {file.name: hash_of(file)[:16] for file in found}

    def identity(self) -> dict[str, str]:
        """What makes a model this one: the hash of its files, or the hub's commit. UserError where it can't be had."""
        if self.hub:
            return {"hub": self.hub, "commit": self.commit()}
        if self.gguf and self.path:
            return {"sha256": hash_of(self.path)}
        return {"sha256": sha256_of_json(self.files())}

    def commit(self) -> str:
        """The commit of a hub model: of its fetched copy, or of the snapshot in the hub's cache, else of the hub."""
        fetched = entry("model", self.hub, self.revision)
        if fetched:
            return str(fetched[1]["commit"])
        hub_answers()
        try:
            return Path(
                huggingface_hub.hf_hub_download(self.hub, "config.json", revision=self.revision or None)
            ).parent.name
        except Exception as error:  # the hub's client raises a dozen types, requests' among them
            raise self.unreadable(error) from error

    def config(self) -> PretrainedConfig:
        """The model's configuration. UserError where it cannot be found or read."""
        from transformers import AutoConfig

        config = self._load(AutoConfig)
        text = config.get_text_config()
        if (getattr(text, "pad_token_id", None) or 0) >= getattr(text, "vocab_size", math.inf):
            text.pad_token_id = None  # beyond the embedding, which could not even be made
        return config

    def raw_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer as its makers left it: its length tells which rows of an embedding ChatML adds."""
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        # Of a GGUF file, AutoTokenizer of transformers 5.0 to 5.5 makes a CodeLlamaTokenizer, with other ids.
        tokenizer = self._load(PreTrainedTokenizerFast if self.gguf else AutoTokenizer)
        if self.gguf and "ByteLevel" in str(tokenizer.backend_tokenizer.decoder):
            # transformers 5.0 makes a special token of bytes that a byte-level BPE does not know; later ones drop them.
            tokenizer.backend_tokenizer.model.unk_token = None
        return tokenizer

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer with ChatML."""
        return add_chatml(self.raw_tokenizer())

    def load(self, device: str | None = None) -> PreTrainedModel:
        """The causal language model in float32 on the CPU; on `meta` without its weights, which are looked at though.

        UserError where it cannot be read, isn't causal, or its files hold other weights than its configuration asks
        for. Of a GGUF file transformers leaves out what it does not know, so there unknown weights are not found.
        """
        import torch
        from transformers import AutoModelForCausalLM

        hide_loading_bar()
        asked: Json = {"dtype": torch.float32, "device_map": device, "output_loading_info": True}
        asked |= {} if self.gguf else {"config": self.config()}
        model, found = self._load(AutoModelForCausalLM, ignore_mismatched_sizes=True, **asked)
        self._check_weights(found)
        if not device:  # where the files hold both, config.json may say what it likes
            head = model.get_output_embeddings()
            model.config.tie_word_embeddings = head.weight is model.get_input_embeddings().weight
        if getattr(model, "quantization_method", None) == "gguf":
            # Its weights are plain float32, but transformers would not save a model that has this mark.
            del model.hf_quantizer, model.quantization_method, model.config.quantization_config
            model.is_quantized = False
        text = model.config.get_text_config()
        if getattr(text, "sliding_window", None) and not hasattr(type(text)(), "sliding_window"):
            del text.sliding_window  # Llama has none: only the cache of `generate` would forget what is behind it
        return model

    def _check_weights(self, found: Json) -> None:
        missing, unknown = found["missing_keys"], found["unexpected_keys"]
        kinds = {"missing": missing, "unknown": unknown, "of another size": {n for n, *_ in found["mismatched_keys"]}}
        wrong = [f"{len(names)} {kind} ({', '.join(sorted(names)[:3])})" for kind, names in kinds.items() if names]
        advice = "give files of a causal language model that belong to its config.json"
        if wrapped := [prefix for prefix in WRAPPERS if any(name.startswith(prefix) for name in unknown)]:
            advice = f"'{wrapped[0]}' was put in front of the names by a wrapper: take it off, and save the model again"
        elif self.gguf:
            advice = "download it again, or convert it again"
        elif set(missing) == {"lm_head.weight"} and not unknown:
            advice = "where the output is tied to the input embedding, set tie_word_embeddings to true in config.json"
        if wrong:
            raise UserError(
                f"The files of the model '{self.text}' do not fit its configuration: weights {' and '.join(wrong)}; "
                f"what is unknown would be left out, and the others be random numbers; {advice}."
            )

    @property
    def source(self) -> tuple[str, Json]:
        """What transformers is asked for, and with which options."""
        if self.path is None:
            return self.hub, {"revision": self.revision} if self.revision else {}
        if self.gguf:
            return str(self.path.parent), {"gguf_file": self.path.name}
        return str(self.path), {}

    def _load(self, auto: Any, **options: Any) -> Any:
        where, more = self.source
        if self.path is None:
            hub_answers()
        try:
            return auto.from_pretrained(where, trust_remote_code=False, **more, **options)  # or it asks in the terminal
        except Exception as error:  # damaged weights raise neither OSError nor ValueError
            raise self.unreadable(error) from error

    def unreadable(self, error: Exception) -> UserError:
        """The sentence on a model that could not be read."""
        reason = shorten(f"{type(error).__name__}: {error}", 240)  # a check of sizes tells it in its second line
        if "trust_remote_code" in str(error):
            reason = "its config.json asks for program code from its own files (auto_map), which is never run here"
        return UserError(
            f"The model '{self.text}' could not be loaded{offline()}: {reason} — give a hub id that can be reached, a "
            "folder, a whole GGUF file, or 'tiny'."
        )


def hide_loading_bar() -> None:
    """transformers' bar for reading weights would stay in executed notebooks; the hub's own bars stay on."""
    from transformers.utils import logging

    if logging.is_progress_bar_enabled():
        logging.disable_progress_bar()
        huggingface_hub.utils.enable_progress_bars()


def _model_in(folder: Path) -> Path:
    """The model of a folder: itself, a training's final one, or a run's trained one. UserError where there is none."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"The folder {shown(folder)} holds an adapter (LoRA): merge it into its base model first, by "
            "`merge_and_unload()` of PEFT, save that model and its tokenizer, and give the new folder."
        )
    for inside in (folder, folder / "final", Run(folder).model()):
        if holds_model(inside):
            return inside
    raise UserError(
        f"The folder {shown(folder)} holds no model: config.json is missing; give a model's folder, for example "
        "runs/demo/train/final."
    )


def context_length(config: PretrainedConfig) -> int:
    """Tokens that a model was trained to read at once; 1,024 where it has no limit."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1024)


def files_of(name: str | Path, patterns: tuple[str, ...] = MODEL_FILES, run: Path | None = None) -> dict[str, str]:
    """`ModelRef.files` of a name for a cache key; nothing for what is not there: using it says so."""
    try:
        return ModelRef.parse(str(name), run).files(patterns)
    except UserError:
        return {}


def train_bpe(texts: Iterable[str], pieces: int = PIECES) -> PreTrainedTokenizerBase:
    """A byte-level BPE of up to `pieces` pieces (256 of them the bytes), with ChatML's control tokens on top."""
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=pieces, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    return add_chatml(PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False))


def tiny_config(vocabulary: int, context: int, pad: int, eos: int) -> LlamaConfig:
    """The embedded model's architecture: a Llama of 4 layers and hidden size 128."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=pad,
        bos_token_id=None,
        eos_token_id=eos,
        initializer_range=0.04,
    )


def tiny_model(tokenizer: PreTrainedTokenizerBase, context: int, seed: int) -> PreTrainedModel:
    """An untrained `tiny` model around a tokenizer; the same weights for the same seed."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(tiny_config(len(tokenizer), context, tokenizer.pad_token_id, tokenizer.eos_token_id))
