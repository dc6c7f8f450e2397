"""Each figure of behaviour counts what its name says, and advice on the context needs evidence."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset

from nbutils.core.chat_engine.generation import Reply
from nbutils.core.run.models import tiny_model
from nbutils.evaluate.behaviour import figures_of, measure
from nbutils.evaluate.context_curve import ORDER, beyond_trained, losses_of, measure_curve, too_long_ids
from nbutils.evaluate.display import behaviour_table
from tests.builders import small_tokenizer
from tests.conftest import sentencepiece_tokenizer
from tests.core.test_bootstrap import accuracies
from tests.core.test_chatml import turns


def test_figures_on_made_up_replies():
    prompts = [turns(text) for text in ("Hello there", "How are you?", "Tell me more", "So?")]
    replies = [
        Reply("hello THERE", [1, 2], True),
        Reply("fine fine", [3, 4, 5, 6, 3, 4, 5, 6], True),
        Reply("ok\nuser\nand you?", [7, 8, 9], False),
        Reply("", [99], False),
    ]
    figures = figures_of(replies, prompts, special_ids={99})
    assert figures == figures | {
        "replies": 4, "ended": 0.5, "echoes": 0.25, "repeats": 0.25, "empty": 0.25,
        "leaks": 0.5,  # a role header in the text, and a control token
        "median_tokens": 2.5,
        "distinct_1": pytest.approx(7 / 8),  # hello there fine fine ok user and you?
        "distinct_2": 1.0,
    }  # fmt: skip
    assert figures["intervals"]["echoes"][0] > 0.04, "a share of 1 in 4 is not certain"
    found = {"models": {"run": {"greedy": figures}}, "left_out": {}}
    assert "50% [15%, 85%]" in behaviour_table(found).to_string()


def test_conversations_for_the_context_curve_outgrow_the_model_and_are_cut_at_twice_its_length(tmp_path):
    lengths = (90, 20, 90, 32, *[90] * 30)
    long = Dataset.from_list([{"input_ids": [row] * length} for row, length in enumerate(lengths)])
    long.save_to_disk(tmp_path / "too_long")
    rows = too_long_ids(tmp_path, 3, 32, 0)
    assert [len(row) for row in rows] == [64] * 3
    assert rows == too_long_ids(tmp_path, 3, 32, 0) != too_long_ids(tmp_path, 3, 32, 1), "the seed chooses"
    assert len(too_long_ids(tmp_path, 99, 32, 0)) == 32 and too_long_ids(tmp_path, 3, 128, 0) == []


def test_the_context_curve_covers_twice_the_trained_length():
    model = tiny_model(small_tokenizer(["to talk"], 300), 32, 0)
    rows = np.random.default_rng(0).integers(0, 100, (3, 64)).tolist()
    curve = measure_curve(model, rows, resamples=200, seed=0)
    assert curve["trained_length"] == 32 and set(curve["curves"]) == set(ORDER)
    assert curve["tokens_beyond"] == 3 * 32 and set(curve["differences"]) == set(ORDER) - {"none"}
    ids = torch.tensor(rows[:1])
    plain = pytest.approx(model(ids, labels=ids).loss.item(), abs=1e-4)
    assert losses_of(model, rows[:1], "none")[0].mean() == plain != losses_of(model, rows[:1], "yarn")[0].mean()


def losses(conversations, **gains):
    """Losses of 500 tokens of each conversation, about 4 nats, less what an extension gains, and noise."""
    rng = np.random.default_rng(0)
    hard, found = rng.normal(4, 0.5, conversations), {}
    for name in ORDER:
        own = hard - gains.get(name, 0.0) + rng.normal(0, 0.02, conversations)
        found[name] = 500 * accuracies(own)
    return found


UNSURE = np.random.default_rng(1).normal(0.05, 0.3, 40)


@pytest.mark.parametrize(
    "conversations,gains,best,words",
    [
        (40, {"yarn": 0.1}, "yarn", "a difference of -0.1"),
        (40, {"yarn": 0.1, "dynamic": 0.1}, "dynamic", "Not distinguishable from it: `yarn`."),
        # dynamic may be as good as yarn, but also no better than none
        (40, {"yarn": 0.1, "dynamic": UNSURE}, "yarn", "Not distinguishable from it: `dynamic`."),
        (40, {}, "none", "no extension is distinguishably better than none"),
        (40, dict.fromkeys(ORDER[1:], -1.0), "none", "no extension is distinguishably better"),
        (8, {"yarn": 0.1}, None, "8 conversations beyond 1,024 tokens are too few to tell"),
    ],
)
def test_advice_is_given_only_where_conversations_show_a_difference(conversations, gains, best, words):
    found = beyond_trained(losses(conversations, **gains), 1024, resamples=1000, seed=0)
    assert found["best"] == best and words in found["advice"]
    assert f"`context_extension: {best or 'auto'}`" in found["advice"]


IM_SEP = "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize("template,asked", [(IM_SEP, False), (None, True)])
def test_models_of_another_template_are_left_out_and_a_missing_pad_token_is_none_of_our_business(
    chat_tokenizers, template, asked
):
    tokenizer = copy.deepcopy(chat_tokenizers["byte_level"])
    tokenizer.chat_template, tokenizer.pad_token = template, None
    found = measure(tiny_model(tokenizer, 64, 0), tokenizer, [turns("x"), turns("x" * 20)], max_new_tokens=2, seed=0)
    assert found["greedy"]["replies"] == 2 if asked else "another than ChatML" in found["left_out"]


def test_models_without_the_tokens_of_chatml_are_left_out():
    assert "no ChatML tokens" in measure(None, sentencepiece_tokenizer(), [], max_new_tokens=1, seed=0)["left_out"]
