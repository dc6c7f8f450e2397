"""Loading base models: hub ids (from a local folder laid out as a hub snapshot), and clear refusals."""

import re

import pytest
import torch

from nbutils.core.chatml import add_chatml
from nbutils.core.errors import UserError
from nbutils.core.files import write_text
from nbutils.core.run.models import ModelRef
from tests.core.test_chatml import llama, without_chatml

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("revision", ["", f"@{COMMIT}", "@main"])
def test_a_hub_id_is_loaded_by_the_real_hub_code(tmp_path, monkeypatch, revision):
    """`someone/small-llama`, untied, as the reference base is."""
    tokenizer, repository = without_chatml(), tmp_path / "models--someone--small-llama"
    for part in (tokenizer, llama(len(tokenizer), tie_word_embeddings=False)):
        part.save_pretrained(repository / "snapshots" / COMMIT)
    write_text(repository / "refs" / "main", COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    ref = ModelRef.parse(f"someone/small-llama{revision}")
    model = ref.load()
    loaded = add_chatml(ref.raw_tokenizer(), model)
    assert len(model.get_input_embeddings().weight) == loaded.pad_token_id + 1 == len(tokenizer) + 3
    assert model.dtype == torch.float32 and ref.identity() == {"hub": "someone/small-llama", "commit": COMMIT}


@pytest.mark.parametrize(
    "name,words",
    {
        "nobody/nothing": "'nobody/nothing' could not be loaded",
        "{run}": "holds an adapter (LoRA): merge it into its base model first",
        "final": "02_train_sft",
    }.items(),
)
def test_what_is_not_there_is_a_sentence(tmp_path, name, words):
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / file).touch()
    with pytest.raises(UserError, match=re.escape(words)):
        ModelRef.parse(name.format(run=tmp_path), tmp_path).load()
