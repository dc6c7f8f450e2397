"""Loading base models: hub ids (from a local folder laid out as a hub snapshot), folders, GGUF, and clear refusals."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from nbutils.core.chatml import IM_END, add_chatml
from nbutils.core.errors import UserError
from nbutils.core.run.models import ModelRef, tiny_model
from tests.core.test_chatml import llama, unigram

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """A hub cache that holds `someone/small-llama`, untied, as the reference base is."""
    home = tmp_path_factory.mktemp("hub")
    repository = home / "models--someone--small-llama"
    snapshot = repository / "snapshots" / COMMIT
    tokenizer = unigram(chatml=False)
    llama(len(tokenizer), tie_word_embeddings=False).save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return home


@pytest.mark.parametrize("named", ["", "@" + COMMIT, "@main"])
def test_a_hub_id_is_loaded_by_the_real_hub_code(hub, monkeypatch, named):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    ref = ModelRef.parse(f"someone/small-llama{named}")
    model = ref.load()
    tokenizer = add_chatml(ref.raw_tokenizer(), model)
    pieces = len(unigram(chatml=False))
    assert model.get_input_embeddings().weight.shape[0] == tokenizer.pad_token_id + 1 == pieces + 3
    assert model.dtype == torch.float32 and ref.identity() == {"hub": "someone/small-llama", "commit": COMMIT}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nobody/nothing", "'nobody/nothing' could not be loaded"),
        ("{run}", "config.json is missing"),
        ("{run}/adapter", "holds no model: config.json is missing"),  # LoRA weights without their model
        ("final", "02_train_sft"),
        ("models/none.gguf", "GGUF file models/none.gguf does not exist"),
    ],
)
def test_what_is_not_there_is_a_sentence(tmp_path, name, words):
    (tmp_path / "adapter").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "adapter" / file).touch()
    with pytest.raises(UserError, match=re.escape(words)):
        ModelRef.parse(name.format(run=tmp_path), tmp_path).load()


def test_a_gguf_file_gives_tokenizer_and_chatml(smollm2_gguf):
    tokenizer = ModelRef.parse(str(smollm2_gguf)).tokenizer()
    assert tokenizer.eos_token == IM_END and tokenizer.pad_token_id == 49152


def test_tiny_is_the_same_for_the_same_seed():
    weights = [tiny_model(unigram(), 64, seed).get_input_embeddings().weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
