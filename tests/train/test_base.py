"""The base model that training starts from: made once, and only for the data that was tokenised for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoTokenizer

from nbutils.core.chatml import IM_END, IM_START, PAD
from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.core.run.layout import Run
from nbutils.core.run.models import TINY, ModelRef, tiny_model
from nbutils.train.base import check_weights, ensure_base, make_base, weightless_base
from tests.builders import data_folder, small_tokenizer
from tests.train.runs import small_settings


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data, and a small base model in a folder, whose tokenizer the data was made with."""
    run = tmp_path_factory.mktemp("base")
    data = data_folder(run)
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    tiny_model(tokenizer, 256, 1).save_pretrained(run / "model")
    tokenizer.save_pretrained(run / "model")
    return run


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def say(run, base_model) -> None:
    """Has the data's summary say that it was tokenised for another base model."""
    path = run / "data" / "summary.json"
    summary = read_json(path)
    write_json(path, summary | {"tokenizer": summary["tokenizer"] | {"base_model": str(base_model)}})


def refused(run, **changes) -> str:
    with pytest.raises(UserError) as caught:
        ensure_base(small_settings(run, **changes), run / "train" / "base", run / "data")
    assert not (run / "train" / "base").exists()
    return str(caught.value)


def test_data_tokenised_for_another_base_is_refused(run):
    text = refused(run, base_model=str(run / "model"))
    assert f"was tokenised for base_model '{TINY}', but training asks for '{run / 'model'}'" in text
    assert "run notebooks/01_filter_data.ipynb again" in text


def test_data_with_longer_rows_is_refused(run):
    assert "holds conversations of up to 256 tokens, but max_length is 128 here" in refused(run, max_length=128)


def test_a_base_with_another_vocabulary_is_refused(run):
    say(run, run / "model")
    small_tokenizer(["another text altogether"], 300).save_pretrained(run / "data" / "tokenizer")
    text = refused(run, base_model=str(run / "model"))
    assert "The data's tokenizer has" in text and "run notebooks/01_filter_data.ipynb again" in text


def test_a_base_that_reads_less_than_max_length_is_refused(run):
    say(run, run / "model")
    text = refused(run, base_model=str(run / "model"), max_length=512)
    assert f"max_length is 512 tokens, but '{run / 'model'}' reads 256; lower max_length" in text


def changed(folder, weights: Callable[[dict], dict]) -> None:
    """Changes the weights in a model's file."""
    file = folder / "model.safetensors"
    save_file(weights(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "weights,told",
    [
        (lambda w: {f"module.{name}": x for name, x in w.items()}, "'module.' was put in front of the names"),
        (lambda w: {f"_orig_mod.{name}": x for name, x in w.items()}, "'_orig_mod.' was put in front of the names"),
        (lambda w: w | {"model.norm.bias": torch.zeros(2)}, "weights 1 unknown (model.norm.bias); "),
        (lambda w: w | {"model.norm.weight": torch.zeros(2)}, "weights 1 of another size (model.norm.weight); "),
        (lambda w: {n: x for n, x in w.items() if n != "model.norm.weight"}, "1 missing (model.norm.weight); "),
        (None, "1 missing (lm_head.weight); training would begin with random numbers in place of them; where the"),
    ],
)
def test_a_base_whose_files_do_not_fit_its_configuration_is_refused(run, weights, told):
    """In notebook 02, and before in its preflight; the last one's configuration has lost that the head is tied."""
    say(run, run / "model")
    if weights:
        changed(run / "model", weights)
    else:
        write_json(
            run / "model" / "config.json", read_json(run / "model" / "config.json") | {"tie_word_embeddings": False}
        )
    assert told in refused(run, base_model=str(run / "model"))
    with pytest.raises(UserError, match="do not fit its configuration"):
        weightless_base(small_settings(run, base_model=str(run / "model")))


@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_base_fits(tmp_path, tied):
    tokenizer = small_tokenizer(["a few words"], 300)
    model = tiny_model(tokenizer, 256, 1)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(tmp_path, max_shard_size="200KB")  # several files
    check_weights(ModelRef.parse(str(tmp_path)))


def test_the_trained_model_is_read_with_the_ids_of_the_data_also_where_the_base_adds_bos(run):
    file = run / "data" / "tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(file)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<|pad|> $A", None, [(PAD, 2)])
    tokenizer.save_pretrained(file)
    plain = tokenizer("Hello there", add_special_tokens=False)["input_ids"]
    assert AutoTokenizer.from_pretrained(file)("Hello there")["input_ids"] != plain
    base = ensure_base(small_settings(run), run / "train" / "base", run / "data")
    assert AutoTokenizer.from_pretrained(base)("Hello there")["input_ids"] == plain


def test_the_base_is_made_once_from_the_seed(run):
    base = ensure_base(small_settings(run, seed=1), run / "train" / "base", run / "data")
    weights = [ModelRef.parse(str(folder)).load().get_input_embeddings().weight for folder in (base, run / "model")]
    assert torch.equal(*weights)
    before = (base / "model.safetensors").stat().st_mtime_ns
    ensure_base(small_settings(run, seed=5), base, run / "data")
    assert (base / "model.safetensors").stat().st_mtime_ns == before


def test_the_newest_model_is_the_final_one_or_the_newest_checkpoints_or_the_base(tmp_path):
    assert Run(tmp_path).newest_model() == tmp_path / "train" / "base"
    training = tmp_path / "train"
    (training / "checkpoints" / "step-000011.partial").mkdir(parents=True)
    for name in ("checkpoints/step-000009", "checkpoints/step-000010", "final"):
        (training / name).mkdir(parents=True)
        write_json(training / name / "config.json", {})
        assert Run(tmp_path).newest_model() == training / name


@pytest.mark.soak
def test_a_gguf_file_becomes_a_base(run, smollm2_gguf):
    tokenizer = ModelRef.parse(str(smollm2_gguf)).tokenizer()
    model = make_base(small_settings(run, base_model=str(smollm2_gguf)), tokenizer)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    ids = tokenizer.convert_tokens_to_ids([IM_START, IM_END])
    assert len(set(ids)) == 2 and model.get_input_embeddings().weight[ids].norm(dim=1).min() > 0
    model.save_pretrained(run / "base")  # a quantized one would refuse
    assert ModelRef.parse(str(run / "base")).load().num_parameters() == model.num_parameters()
