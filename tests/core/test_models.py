"""Loading base models: hub ids (from a local folder laid out as a hub snapshot), folders, GGUF, and clear refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nbutils.core.chatml import IM_END
from nbutils.core.errors import UserError
from nbutils.core.run.models import ModelRef, tiny_model
from tests.conftest import sentencepiece_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """A hub cache that holds `someone/small-llama`: 32,000 pieces, untied, as the reference base is."""
    home = tmp_path_factory.mktemp("hub")
    repository = home / "hub" / "models--someone--small-llama"
    snapshot = repository / "snapshots" / COMMIT
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(snapshot)
    sentencepiece_tokenizer().save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return home


@pytest.mark.parametrize("revision", ["", COMMIT])
def test_a_hub_id_is_loaded_by_the_real_hub_code(hub, revision):
    code = (
        "from nbutils.core.run.models import ModelRef\n"
        "from nbutils.core.chatml import add_chatml\n"
        f"ref = ModelRef.parse('someone/small-llama', revision={revision!r})\n"
        "model = ref.load()\n"
        "tokenizer = add_chatml(ref.raw_tokenizer(), model)\n"
        "print(model.get_input_embeddings().weight.shape[0], tokenizer.pad_token_id, model.dtype)\n"
    )
    environment = {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(hub)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "32003 32002 torch.float32", done.stderr[-2000:]


def test_a_hub_id_that_is_nowhere_is_a_sentence():
    with pytest.raises(UserError, match="'nobody/nothing' could not be loaded"):
        ModelRef.parse("nobody/nothing").load()


def test_a_folder_without_a_model_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        ModelRef.parse(str(tmp_path))
    with pytest.raises(UserError, match="02_train_sft"):
        ModelRef.parse("final", tmp_path)


def test_a_gguf_file_that_is_not_there_is_a_sentence():
    with pytest.raises(UserError, match=r"GGUF file models/none\.gguf does not exist"):
        ModelRef.parse("models/none.gguf")


def test_a_gguf_file_gives_tokenizer_and_chatml(smollm2_gguf):
    tokenizer = ModelRef.parse(str(smollm2_gguf)).tokenizer()
    assert tokenizer.eos_token == IM_END and tokenizer.pad_token_id == 49152


def test_tiny_is_the_same_for_the_same_seed(chat_tokenizers):
    tokenizer = chat_tokenizers["sentencepiece"]
    first, again, other = (tiny_model(tokenizer, 64, seed) for seed in (1, 1, 2))
    weights = [model.get_input_embeddings().weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
