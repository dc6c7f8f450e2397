"""SharedPrefixLM gives the numbers of stock `hf`, on every path, and says so where it cannot share."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest
import torch
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import BertConfig, BertLMHeadModel, BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from nbutils.core.errors import UserError
from nbutils.core.run.models import tiny_model
from nbutils.evaluate.shared_prefix import SharedPrefixLM
from tests.builders import small_tokenizer
from tests.evaluate.stock_tasks import stock_tasks

LENGTH = 64
WORDS = re.findall(r"\w+", "the cat sat on a mat and then it went away to sleep under the moon")


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer([" ".join(WORDS)] * 9, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    made = tiny_model(tokenizer, LENGTH, 0)
    with torch.no_grad():  # clear preferences: greedy choices are no coin flips
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return made.eval()


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def multiple_choice(seed: int = 0) -> list[Instance]:
    """Contexts that are empty, short, at the limit and over it; continuations of one token and of many."""
    rng = random.Random(seed)
    pairs = []
    for length in (0, 1, 3, 20, 40, 55, 60, 61, 62, 63, 80, 200):
        context = words(rng, length)
        pairs += [(context, " " + words(rng, count)) for count in (1, 1, 2, 9)]
        pairs += [(context, pairs[-1][1])]
        pairs += [(context + " ", words(rng, 3))] if context else []  # stock asserts that a context has tokens
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


def as_it_is(model, monkeypatch):
    return model


def gpt2(model, monkeypatch):
    """Learned positions."""
    config = {"n_positions": LENGTH, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(vocab_size=model.config.vocab_size, **config)).eval()


def bloom(model, monkeypatch):
    """An architecture that takes no mask of ours."""
    config = {"hidden_size": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3, "seq_length": LENGTH}
    return BloomForCausalLM(BloomConfig(vocab_size=model.config.vocab_size, **config)).eval()


def windowed(model, monkeypatch):
    """A window of its own, which our mask must not replace (here a longer one than all texts)."""
    monkeypatch.setattr(model.config, "sliding_window", LENGTH - 1, raising=False)
    return model


def out_of_reach(model, monkeypatch):
    """An output layer that is not where it seems to be."""
    decoy = torch.nn.Linear(2, 2)
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda self: decoy)
    return model


@pytest.mark.parametrize(
    "kind,strategy",
    [
        (as_it_is, "shared rows"),
        (gpt2, "shared rows"),
        (bloom, "causal rows"),
        (windowed, "causal rows"),
        (out_of_reach, "stock"),
    ],
)
def test_equals_stock_at_and_over_the_maximum_length(model, tokenizer, monkeypatch, kind, strategy):
    options = {"tokenizer": tokenizer, "max_length": LENGTH, "batch_size": 8}
    asked, requests = kind(model, monkeypatch), multiple_choice()
    ours = SharedPrefixLM(asked, **options)
    assert ours.strategy == strategy
    expected = HFLM(asked, **options).loglikelihood(requests, disable_tqdm=True)
    got = ours.loglikelihood(requests, disable_tqdm=True)
    assert [x for x, _ in got] == pytest.approx([x for x, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]


def test_rolling_windows_equal_stock(model, tokenizer):
    stock, ours = HFLM(model, tokenizer=tokenizer, batch_size=2), SharedPrefixLM(model, tokenizer=tokenizer)
    rng = random.Random(1)
    texts = [words(rng, count) for count in (1, 10, 62, 63, 64, 65, 130, 400)]
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    expected = stock.loglikelihood_rolling(requests, disable_tqdm=True)
    got = ours.loglikelihood_rolling(requests, disable_tqdm=True)
    assert got == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("threads,tokens_per_batch", [(2, 64), (1, 512), (2, 4096)])
def test_neither_batches_nor_threads_change_a_number(model, tokenizer, threads, tokens_per_batch):
    before = torch.get_num_threads()
    requests = multiple_choice(2)
    expected = SharedPrefixLM(model, tokenizer=tokenizer).loglikelihood(requests, disable_tqdm=True)
    torch.set_num_threads(threads)
    try:
        ours = SharedPrefixLM(model, tokenizer=tokenizer, tokens_per_batch=tokens_per_batch)
        got = ours.loglikelihood(requests, disable_tqdm=True)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert [g for _, g in got] == [g for _, g in expected]
    assert [x for x, _ in got] == pytest.approx([x for x, _ in expected], abs=1e-4)


def test_a_context_is_read_once(model, tokenizer):
    ours = SharedPrefixLM(model, tokenizer=tokenizer, tokens_per_batch=64)
    context = words(random.Random(3), 40)
    requests = [Instance("loglikelihood", {}, (context, f" {word}"), i) for i, word in enumerate(WORDS[:8])]
    assert ours.strategy
    read: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    ours.loglikelihood(requests, disable_tqdm=True)
    hook.remove()
    assert 0 < sum(read) < 60  # and not 8 × 40


def test_half_precision_is_scored_in_float32(model, tokenizer):
    half = tiny_model(tokenizer, LENGTH, 0).to(torch.bfloat16).eval()
    requests = multiple_choice(7)
    got = [x for x, _ in SharedPrefixLM(half, tokenizer=tokenizer).loglikelihood(requests, disable_tqdm=True)]
    stock = [x for x, _ in HFLM(half, tokenizer=tokenizer).loglikelihood(requests, disable_tqdm=True)]
    on_the_grid = [float(torch.tensor(x).bfloat16()) == x for x in stock]
    assert all(on_the_grid), "still needed? stock no longer quantises log-likelihoods"
    assert sum(float(torch.tensor(x).bfloat16()) == x for x in got) < len(got) / 4


def test_a_model_that_is_not_causal_is_refused(tokenizer):
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, initializer_range=0.3)  # fmt: skip
    with pytest.raises(UserError, match="not causal"):
        _ = SharedPrefixLM(BertLMHeadModel(config).eval(), tokenizer=tokenizer, max_length=LENGTH).strategy


def test_nan_is_one_sentence(tokenizer):
    model = tiny_model(tokenizer, LENGTH, 0)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinite"):
        SharedPrefixLM(model, tokenizer=tokenizer).loglikelihood(multiple_choice(), disable_tqdm=True)


@pytest.fixture(scope="module")
def smollm2(smollm2_folder):
    """Stock and ours with a real model, on all cores (the rest of the suite runs on one thread)."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    options = {"dtype": "float32", "device": "cpu", "max_length": 2048}
    yield {
        "ours": SharedPrefixLM(str(smollm2_folder), **options),
        "stock": HFLM(str(smollm2_folder), batch_size=8, **options),
    }
    torch.set_num_threads(before)


@pytest.mark.soak
@pytest.mark.parametrize(("name", "items"), [("hellaswag", 16), ("sciq", 10), ("wikitext", 1)])
def test_equals_stock_on_smollm2(smollm2, evaldata: Path, name: str, items: int):
    """The same log-likelihoods, choices and metrics as stock on real tasks with a real model, fp32."""
    assert smollm2["ours"].strategy == "shared rows"
    task = stock_tasks([name], evaldata)[name]
    ours, stock = (
        evaluator.evaluate(smollm2[side], {"tasks": {name: task}}, limit=items, bootstrap_iters=0)
        for side in ("ours", "stock")
    )
    metrics = [{k: v for k, v in found["results"][name].items() if isinstance(v, float)} for found in (ours, stock)]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-4) and metrics[0]
    for mine, theirs in zip(ours["samples"][name], stock["samples"][name], strict=True):
        for a, b in zip(mine["filtered_resps"], theirs["filtered_resps"], strict=True):
            (mine_ll, *my_greedy), (their_ll, *their_greedy) = (x if isinstance(x, tuple) else (x,) for x in (a, b))
            assert mine_ll == pytest.approx(their_ll, abs=1e-3)
            assert my_greedy == their_greedy
        lls = sorted((r[0] for r in theirs["filtered_resps"] if isinstance(r, tuple)), reverse=True)
        if len(lls) > 1 and lls[0] - lls[1] >= 1e-4:
            assert mine["acc"] == theirs["acc"]
