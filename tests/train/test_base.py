"""The base model that training starts from: made once, and only for the data that was tokenised for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoTokenizer

from nbutils.core.chatml import IM_END, IM_START, PAD
from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.core.run.layout import Run
from nbutils.core.run.models import TINY, ModelRef, tiny_model
from nbutils.train.base import check_weights, ensure_base, make_base, weightless_base
from nbutils.train.preflight import run_findings
from tests.builders import small_tokenizer
from tests.train.runs import small_settings


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data, and a small base model in a folder, whose tokenizer the data was made with."""
    run = tmp_path_factory.mktemp("base")
    small_settings(run)
    tokenizer = AutoTokenizer.from_pretrained(run / "data" / "tokenizer")
    tiny_model(tokenizer, 256, 1).save_pretrained(run / "model")
    tokenizer.save_pretrained(run / "model")
    return run


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    merge(tmp_path / "run" / "data" / "summary.json", tokenizer={"base_model": str(tmp_path / "run" / "model")})
    return tmp_path / "run"


def merge(path, **changes) -> None:
    write_json(path, read_json(path) | changes)


def changed(run, weights: Callable[[dict], dict]) -> None:
    """Changes the weights in the model's file."""
    file = run / "model" / "model.safetensors"
    save_file(weights(load_file(file)), file, metadata={"format": "pt"})


def other_data(run) -> None:
    small_tokenizer(["another text altogether"], 300).save_pretrained(run / "data" / "tokenizer")


def configured(**changes) -> Callable:
    return lambda run: merge(run / "model" / "config.json", **changes)


def of_tiny(run) -> None:
    merge(run / "data" / "summary.json", tokenizer={"base_model": TINY})


def weights(change: Callable[[dict], dict]) -> Callable:
    return lambda run: changed(run, change)


ONLY_DATA = [
    (of_tiny, {}, [f"was tokenised for base_model '{TINY}', but training asks for '", "01_filter_data.ipynb again"]),
    (other_data, {}, ["The data's tokenizer is another than that of '", "run notebooks/01_filter_data.ipynb again"]),
    (configured(), {"max_length": 128}, ["conversations of up to 256 tokens, but max_length is 128 here"]),
]
BEFORE = [
    (configured(), {"max_length": 512}, ["max_length is 512 tokens, but '", "reads 256; lower max_length"]),
    (configured(num_key_value_heads=3), {}, ["4 num_attention_heads cannot share 3 num_key_value_heads"]),
    (configured(num_key_value_heads=8), {}, ["4 num_attention_heads cannot share 8 num_key_value_heads"]),
    (configured(hidden_size=130), {}, ["130", "4"]),
    *(
        (weights(change), {}, ["do not fit its configuration", told])
        for change, told in (
            (lambda w: {f"module.{name}": x for name, x in w.items()}, "'module.' was put in front of the names"),
            (lambda w: {f"_orig_mod.{name}": x for name, x in w.items()}, "'_orig_mod.' was put in front of the"),
            (lambda w: {f"base_model.model.{name}": x for name, x in w.items()}, "'base_model.model.' was put in"),
            (lambda w: w | {"model.norm.bias": torch.zeros(2)}, "weights 1 unknown (model.norm.bias); "),
            (lambda w: w | {"model.norm.weight": torch.zeros(2)}, "weights 1 of another size (model.norm.weight); "),
            (lambda w: {n: x for n, x in w.items() if n != "model.norm.weight"}, "1 missing (model.norm.weight); "),
        )
    ),
    (
        configured(tie_word_embeddings=False),
        {},
        ["1 missing (lm_head.weight); training would begin with random", "tie"],
    ),
]


@pytest.mark.parametrize("harm,changes,words", ONLY_DATA + BEFORE)
def test_a_base_that_does_not_fit_is_refused(run, harm, changes, words):
    """By notebook 02, and what the base alone shows before in its preflight and by `doctor`."""
    harm(run)
    settings, folder = small_settings(run, base_model=str(run / "model"), **changes), run / "train" / "base"
    asked = [lambda: ensure_base(settings, folder, run / "data")]
    if (harm, changes, words) in BEFORE:
        asked.append(lambda: weightless_base(settings))
    for ask in asked:
        with pytest.raises(UserError) as caught:
            ask()
        assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not folder.exists()


@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_base_fits(tmp_path, tied):
    model = tiny_model(small_tokenizer(["a few words"], 300), 256, 1)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(tmp_path, max_shard_size="200KB")  # several files
    check_weights(ModelRef.parse(str(tmp_path)))


SHAPES = {
    **{"token_embd": (20, 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,)},
    **{f"blk.0.attn_{part}": (8, 8) for part in ("q", "k", "v", "output")},
    **{"blk.0.ffn_gate": (16, 8), "blk.0.ffn_up": (16, 8), "blk.0.ffn_down": (8, 16)},
}


@pytest.mark.parametrize(
    "shape,told",
    [((16, 8), ""), (None, "1 missing (model.layers.0.mlp.up"), ((4, 8), "1 of another size (model.layers.0")],
)
def test_the_weights_of_a_gguf_file_are_compared_too(tmp_path, shape, told):
    file = tmp_path / "small.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_name("small")
    for name, value in {"block_count": 1, "context_length": 64, "embedding_length": 8, "feed_forward_length": 16,
                        "attention.head_count": 2, "attention.head_count_kv": 2, "vocab_size": 20}.items():  # fmt: skip
        writer.add_uint32(f"llama.{name}", value)
    for name, size in (SHAPES | {"blk.0.ffn_up": shape}).items():
        if size:
            writer.add_tensor(f"{name}.weight", np.zeros(size, np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    if not told:
        return check_weights(ModelRef.parse(str(file)))
    with pytest.raises(UserError) as caught:
        check_weights(ModelRef.parse(str(file)))
    assert told in str(caught.value) and "convert it again" in str(caught.value)


def test_padding_beyond_the_embedding_and_holes_in_the_vocabulary_are_handled(run):
    """ChatML pads with a token of its own; the embedding has rows up to the highest id."""
    configured(pad_token_id=5000)(run)
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
    of_tiny(run)
    file = run / "data" / "tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(file)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<|pad|> $A", None, [(PAD, 2)])
    tokenizer.save_pretrained(file)
    plain = tokenizer("Hello there", add_special_tokens=False)["input_ids"]
    assert AutoTokenizer.from_pretrained(file)("Hello there")["input_ids"] != plain
    base = ensure_base(small_settings(run), run / "train" / "base", run / "data")
    assert AutoTokenizer.from_pretrained(base)("Hello there")["input_ids"] == plain


def test_the_base_is_made_once_from_the_seed(run):
    of_tiny(run)
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
