"""SharedPrefixLM gives the numbers of stock `hf`, on every path, and says so where it cannot share."""

import os
import random

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForCausalLM

from nbutils.core.errors import UserError
from nbutils.evaluate.shared_prefix import SharedPrefixLM
from tests.builders import small_tokenizer
from tests.evaluate.stock_tasks import requests_of, stock_tasks

LENGTH = 64
TEXT = "the cat sat on a mat and then it went away to sleep under the moon"
WORDS = TEXT.split()
ITEMS = {"hellaswag": 8, "sciq": 4, "wikitext": 1}
TOKENIZER = small_tokenizer([TEXT] * 9, 300)
GIVEN = {"tokenizer": TOKENIZER, "max_length": LENGTH, "batch_size": 8}


def made(kind, **changes):
    """A small model of an architecture, with clear preferences: greedy choices are no coin flips."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, initializer_range=0.3, max_position_embeddings=LENGTH, **changes,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def words(rng, count):
    """A text of so many words."""
    return " ".join(rng.choices(WORDS, k=count))


def asked(kind, arguments):
    """Requests of a kind."""
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def multiple_choice():
    """Contexts that are empty, short, at the limit and over it; continuations of one token and of many."""
    rng = random.Random(0)
    pairs = []
    for length in (0, 1, 3, 20, 40, 55, 60, 61, 62, 63, 80, 200):
        context = words(rng, length)
        pairs += [(context, " " + words(rng, count)) for count in (1, 1, 2, 9)]
        pairs += [pairs[-1]]
        pairs += [(context + " ", words(rng, 3))] if context else []  # stock asserts that a context has tokens
    return asked("loglikelihood", pairs)


CHOICES = multiple_choice()
ROLLING = asked("loglikelihood_rolling", [(words(random.Random(n), n),) for n in (1, 10, 62, 63, 64, 65, 130, 400)])


def answers(lm, requests=CHOICES):
    """Of each request its log-likelihood, and for a continuation whether greedy decoding would write it."""
    return np.array(getattr(lm, requests[0].request_type)(requests, disable_tqdm=True))


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "kind,changes,strategy",
    [
        ("llama", {}, "shared rows"),
        ("gpt2", {}, "shared rows"),  # learned positions
        ("bloom", {}, "causal rows"),  # takes no mask of ours
        ("llama", {"sliding_window": LENGTH - 1}, "causal rows"),  # which our mask must not replace
        ("llama", {}, "stock"),  # its output layer is not where it seems to be
    ],
)
def test_equals_stock_at_and_over_the_maximum_length(monkeypatch, set_threads, kind, changes, strategy):
    """Neither batches nor threads change a number."""
    model = made(kind, **changes)
    if strategy == "stock":
        monkeypatch.setattr(type(model), "get_output_embeddings", lambda self: torch.nn.Linear(2, 2))
    for requests in (CHOICES, ROLLING):
        expected = answers(HFLM(model, **GIVEN), requests)
        for threads, tokens_per_batch in ((1, 0), (2, 64), (2, 4096)):
            set_threads(threads)
            lm = SharedPrefixLM(model, **GIVEN, tokens_per_batch=tokens_per_batch)
            assert answers(lm, requests) == pytest.approx(expected, abs=1e-3)
            assert (lm.strategy, torch.get_num_threads()) == (strategy, threads)


def test_choices_of_a_question_and_turns_of_a_conversation_are_read_once():
    model = made("llama")
    lm = SharedPrefixLM(model, **GIVEN, tokens_per_batch=64)
    assert lm.strategy  # is tried out by reading
    read = []
    model.register_forward_pre_hook(lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True)
    turns = [(" ".join(WORDS[:count]), f" {WORDS[count]}") for count in range(1, len(WORDS))]
    choices = [(TEXT, f" {word}") for word in WORDS]
    answers(lm, asked("loglikelihood", turns + choices))
    assert 0 < sum(read) < 3 * len(WORDS)  # and not the square of it


def test_half_precision_is_scored_in_float32():
    half = made("llama").to(torch.bfloat16)
    got, expected = (torch.tensor(answers(kind(half, **GIVEN))[:, 0]) for kind in (SharedPrefixLM, HFLM))
    assert (expected.bfloat16() == expected).all(), "still needed? stock no longer quantises log-likelihoods"
    assert (got.bfloat16() == got).sum() < len(got) / 4


def test_a_model_that_is_not_causal_is_refused():
    with pytest.raises(UserError, match="not causal"):
        _ = SharedPrefixLM(made("bert"), **GIVEN).strategy


def test_nan_is_one_sentence():
    model = made("llama")
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinite"):
        answers(SharedPrefixLM(model, **GIVEN))


@pytest.mark.soak
def test_equals_stock_on_smollm2(smollm2_folder, evaldata, set_threads):
    """The same log-likelihoods and choices as stock on real tasks with a real model, fp32."""
    set_threads(os.cpu_count() or 1)
    theirs = HFLM(str(smollm2_folder), dtype="float32", device="cpu", max_length=2048, batch_size=8)
    mine = SharedPrefixLM(theirs.model, tokenizer=theirs.tokenizer, max_length=2048)
    assert mine.strategy == "shared rows"
    tasks = stock_tasks(evaldata)
    for name, items in ITEMS.items():
        requests = requests_of(tasks[name], items)
        assert answers(mine, requests) == pytest.approx(answers(theirs, requests), abs=1e-3), name
