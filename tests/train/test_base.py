"""The base model that training starts from: made once, and only for the data that was tokenised for it."""

import re

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoTokenizer

from nbutils.core.chatml import PAD
from nbutils.core.errors import UserError
from nbutils.core.files import read_json, sha256_of_file, write_json, write_text
from nbutils.core.run.layout import Run
from nbutils.core.run.models import TINY, ModelRef
from nbutils.train.base import ensure_base, make_base, source_of, weightless_base
from nbutils.train.preflight import run_findings
from tests.builders import small_tokenizer
from tests.train.runs import small_settings


@pytest.fixture
def run(tmp_path):
    """Data, and a small base model in a folder, whose tokenizer the data was made with."""
    ensure_base(small_settings(tmp_path), tmp_path / "model", tmp_path / "data")
    tokenised_for(str(tmp_path / "model"))(tmp_path)
    return tmp_path


def merged(file, **changes):
    return lambda run: write_json(run / file, read_json(run / file) | changes)


def tokenised_for(base):
    return merged("data/summary.json", tokenizer={"base_model": base})


def configured(**changes):
    return merged("model/config.json", **changes)


def weights(change):
    def harm(run):
        file = run / "model" / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return harm


def other_data(run):
    small_tokenizer(["another text altogether"], 300).save_pretrained(run / "data" / "tokenizer")


NORM = "model.norm.weight"
ONLY_WITH_DATA = {
    f"was tokenised for base_model '{TINY}', but training asks for '": tokenised_for(TINY),
    "The data's tokenizer is another than that of '": other_data,
}
BEFORE = {
    "max_length is 256 tokens, but '": configured(max_position_embeddings=128),
    "130": configured(hidden_size=130),
    "'module.' was put in front of the names": weights(lambda w: {f"module.{name}": x for name, x in w.items()}),
    "weights 1 unknown (model.norm.bias); ": weights(lambda w: w | {"model.norm.bias": torch.zeros(2)}),
    f"weights 1 of another size ({NORM}); ": weights(lambda w: w | {NORM: torch.zeros(2)}),
    f"weights 1 missing ({NORM}); ": weights(lambda w: {name: w[name] for name in w if name != NORM}),
    "1 missing (lm_head.weight); what is unknown would be left out, and ": configured(tie_word_embeddings=False),
    "program code from its own files (auto_map)": configured(model_type="own", auto_map={"AutoConfig": "own.Config"}),
    "more than hidden states times the output embedding": configured(model_type="granite", logits_scaling=2.0),
}


@pytest.mark.parametrize("words,harm", (ONLY_WITH_DATA | BEFORE).items())
def test_a_base_that_does_not_fit_is_refused(run, words, harm):
    """By notebook 02, and what the base alone shows before in its preflight and by `doctor`."""
    harm(run)
    settings, folder = small_settings(run, base_model=str(run / "model")), run / "train" / "base"
    with pytest.raises(UserError, match=re.escape(words)):
        ensure_base(settings, folder, run / "data")
    assert not folder.exists()
    if words in BEFORE:
        with pytest.raises(UserError, match=re.escape(words)):
            weightless_base(settings)


def written_gguf(folder, norm):
    """Settings whose base is a GGUF file with no layers, and with so many numbers in its last norm."""
    file = folder / "small.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(0)
    writer.add_context_length(256)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*"abcdefghijklmnopqrs", "ab"])
    writer.add_token_merges(["a b"])
    for name, shape in (("token_embd", (20, 8)), ("output_norm", norm)):
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return small_settings(folder, base_model=str(file))


def test_a_gguf_file_becomes_a_base_and_one_of_other_weights_is_refused(tmp_path):
    settings = written_gguf(tmp_path, norm=8)
    tokenizer = settings.base_ref.tokenizer()
    base = make_base(settings, tokenizer)
    assert base.get_input_embeddings().num_embeddings == len(tokenizer)
    base.save_pretrained(tmp_path / "base")  # a quantized one would refuse
    with pytest.raises(UserError, match=r"weights 1 of another size \(model.norm.weight.*convert it again"):
        make_base(written_gguf(tmp_path, norm=4), tokenizer)


def test_padding_beyond_the_embedding_and_holes_in_the_vocabulary_are_handled(run):
    """ChatML pads with a token of its own; the embedding has rows up to the highest id. How the base would choose
    tokens is nobody's business, even where it contradicts itself.
    """
    configured(pad_token_id=5000)(run)
    merged("model/generation_config.json", do_sample=False, temperature=0.5, pad_token_id=9)(run)
    file = run / "model" / "tokenizer.json"
    saved = read_json(file)
    pieces = saved["model"]["vocab"]
    pieces[max(pieces, key=pieces.get)] = 700
    write_json(file, saved)
    tokenizer = ModelRef.parse(str(run / "model")).tokenizer()
    tokenizer.save_pretrained(run / "data" / "tokenizer")
    settings = small_settings(run, base_model=str(run / "model"))
    found = [finding.text for finding in run_findings(settings)]
    model = ModelRef.parse(str(ensure_base(settings, run / "train" / "base", run / "data"))).load()
    assert len(tokenizer) == 512 and model.get_input_embeddings().weight.shape[0] == 701
    assert model.config.pad_token_id == tokenizer.convert_tokens_to_ids(PAD)
    assert f"The base model {run / 'model'} has {model.num_parameters():,} parameters." in found


def test_the_trained_model_is_read_with_the_ids_of_the_data_also_where_the_base_adds_bos(run):
    tokenised_for(TINY)(run)
    file = run / "data" / "tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(file)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<|pad|> $A", None, [(PAD, 2)])
    tokenizer.save_pretrained(file)
    plain = tokenizer("Hello there", add_special_tokens=False)["input_ids"]
    assert AutoTokenizer.from_pretrained(file)("Hello there")["input_ids"] != plain
    base = ensure_base(small_settings(run), run / "train" / "base", run / "data")
    assert AutoTokenizer.from_pretrained(base)("Hello there")["input_ids"] == plain


def test_the_base_is_made_once_from_the_seed(run):
    tokenised_for(TINY)(run)
    expected = (run / "model" / "model.safetensors").read_bytes()
    for seed in (1, 5):
        base = ensure_base(small_settings(run, seed=seed), run / "train" / "base", run / "data")
        assert (base / "model.safetensors").read_bytes() == expected


def test_the_newest_model_is_the_final_one_or_the_newest_checkpoints_or_the_base(tmp_path):
    training = tmp_path / "train"
    (training / "checkpoints" / "step-000011.partial").mkdir(parents=True)
    assert Run(tmp_path).newest_model() == training / "base"
    for name in ("checkpoints/step-000009", "checkpoints/step-000010", "final"):
        write_json(training / name / "config.json", {})
        assert Run(tmp_path).newest_model() == training / name


def test_the_source_of_a_base_is_noted(tmp_path, monkeypatch):
    """Of the Hub's, the commit of the snapshot that was read."""
    cache, folder, file = tmp_path / "hub", tmp_path / "folder", tmp_path / "base.gguf"
    write_text(cache / "models--me--base" / "snapshots" / ("c" * 40) / "config.json", "{}")
    write_text(cache / "models--me--base" / "refs" / "main", "c" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    write_text(folder / "config.json", "{}")
    write_text(file, "weights")
    (tmp_path / "data").mkdir()  # none is made
    sources = {"tiny": {}, "me/base": {"commit": "c" * 40}, "me/other": {}, str(folder): {"local": True},
               str(file): {"local": True, "sha256": sha256_of_file(file)}}  # fmt: skip
    for base, known in sources.items():
        found = source_of(small_settings(tmp_path, base_model=base))
        assert found == {"schema": 1, "base_model": base, "local": False, "commit": None, "sha256": None} | known
