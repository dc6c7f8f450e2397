"""Each figure of behaviour counts what its name says."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nbutils.core.chat_engine.generation import Reply
from nbutils.core.run.models import tiny_model
from nbutils.evaluate.behaviour import figures_of, measure, user_turns
from nbutils.evaluate.compare import FEWEST_GROUPS, flagged_items
from nbutils.evaluate.context_curve import ORDER, advice, best_of, differences, losses_of, measure_curve, too_long_ids
from nbutils.evaluate.display import behaviour_table
from nbutils.evaluate.heldout import Conversation
from tests.conftest import sentencepiece_tokenizer
from tests.evaluate.runs import made_up_run


def test_figures_on_made_up_replies():
    prompts = [[{"role": "user", "content": text}] for text in ("Hello there", "How are you?", "Tell me more", "So?")]
    replies = [
        Reply("hello THERE", [1, 2], True),
        Reply("fine fine", [3, 4, 5, 6, 3, 4, 5, 6], True),
        Reply("ok\nuser\nand you?", [7, 8, 9], False),
        Reply("", [99], False),
    ]
    figures = figures_of(replies, prompts, special_ids={99})
    assert figures["replies"] == 4 and figures["ended"] == 0.5
    assert figures["echoes"] == 0.25 and figures["repeats"] == 0.25 and figures["empty"] == 0.25
    assert figures["leaks"] == 0.5, "a role header in the text, and a control token"
    assert figures["median_tokens"] == 2.5
    assert figures["distinct_1"] == pytest.approx(7 / 8)  # hello there fine fine ok user and you?
    low, high = figures["intervals"]["ended"]
    assert low == pytest.approx(0.15, abs=0.01) and high == pytest.approx(0.85, abs=0.01)
    assert figures["intervals"]["echoes"][0] > 0.04, "a share of 1 in 4 is not certain"
    found = {"models": {"run": {"greedy": figures, "sampled": figures}}, "left_out": {}}
    assert "50% [15%, 85%]" in behaviour_table(found).to_string()


def test_prompts_end_with_a_user_turn_and_fit(chat_tokenizers):
    tokenizer = chat_tokenizers["byte_level"]
    messages = [{"role": ("user", "assistant")[k % 2], "content": f"text {k} " * 5} for k in range(10)]
    conversations = [Conversation(row, messages) for row in range(30)]
    chosen = user_turns(conversations, tokenizer, 12, room=90, seed=0)
    assert len(chosen) == 12 and all(prompt[-1]["role"] == "user" for prompt in chosen)
    assert chosen == user_turns(conversations, tokenizer, 12, room=90, seed=0)
    assert user_turns(conversations, tokenizer, 12, room=5, seed=0) == []
    assert "ChatML" in measure(None, sentencepiece_tokenizer(), [], max_new_tokens=1, seed=0)["left_out"]


def test_the_context_curve_covers_twice_the_trained_length(tmp_path):
    from datasets import Dataset
    from transformers import AutoTokenizer

    run = made_up_run(tmp_path / "run", evaluation=4)
    tokenizer = AutoTokenizer.from_pretrained(run / "data" / "tokenizer")
    model = tiny_model(tokenizer, 32, 0)
    assert too_long_ids(run / "data", 3, 32, 0) == []
    rng = np.random.default_rng(0)
    lengths = (90, 20, 90, 32, *[90] * 30)
    Dataset.from_list([{"input_ids": rng.integers(0, 100, n).tolist()} for n in lengths]).save_to_disk(
        str(run / "data" / "too_long")
    )
    assert too_long_ids(run / "data", 3, 128, 0) == [], "the model reads them all"
    rows = too_long_ids(run / "data", 3, 32, 0)
    assert [len(row) for row in rows] == [64] * 3 and rows == too_long_ids(run / "data", 3, 32, 0)
    assert rows != too_long_ids(run / "data", 3, 32, 1), "the seed chooses, not the order of the data"
    assert len(too_long_ids(run / "data", 99, 32, 0)) == 32
    assert measure_curve(model, [], resamples=200, seed=0) is None
    curve = measure_curve(model, rows, resamples=200, seed=0)
    assert curve["trained_length"] == 32 and set(curve["curves"]) == set(ORDER)
    assert curve["tokens_beyond"] == 3 * 32 and set(curve["differences"]) == set(ORDER) - {"none"}
    assert curve["best"] is None and "3 conversations" in curve["advice"] and "too few" in curve["advice"]
    ids = torch.tensor([rng.integers(0, 100, 40).tolist()])
    plain = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
    assert losses_of(model, ids.tolist(), "none")[0] == pytest.approx(plain.detach().numpy(), abs=1e-4)
    assert losses_of(model, ids.tolist(), "yarn")[0] != pytest.approx(plain.detach().numpy(), abs=1e-4)


def beyond_of(conversations: int, **gains: float) -> dict[str, np.ndarray]:
    """Losses of 500 tokens of each conversation, about 4 nats, less what an extension gains; 0.02 nats are noise."""
    rng = np.random.default_rng(0)
    hard = rng.normal(4, 0.5, conversations)
    losses = {name: hard - gains.get(name, 0.0) + rng.normal(0, 0.02, conversations) for name in ORDER}
    return {name: np.stack([500 * x, np.full(conversations, 500.0)], axis=1) for name, x in losses.items()}


def advised(beyond: dict[str, np.ndarray]) -> tuple[str, str]:
    best, conversations = best_of(beyond, 1000, 0), len(beyond["none"])
    words = differences(beyond, best, 1000, 0)
    curve = {
        "trained_length": 1024,
        "conversations": conversations,
        "within": {"none": 3.0},
        "beyond": {name: sums[:, 0].sum() / sums[:, 1].sum() for name, sums in beyond.items()},
        "differences": differences(beyond, "none", 1000, 0),
        "best": best if conversations >= FEWEST_GROUPS else None,
    }
    return best, advice(curve, [name for name, found in words.items() if found["word"] == "not distinguishable"])


def test_advice_is_given_only_where_conversations_show_a_difference():
    assert advised(beyond_of(40, yarn=0.1))[0] == "yarn"
    best, text = advised(beyond_of(40, yarn=0.1, dynamic=0.1))
    assert best == "dynamic" and "context_extension: dynamic" in text and "Not distinguishable from it: `yarn`" in text
    wide = beyond_of(40, yarn=0.1, dynamic=0.05)  # dynamic may be as good as yarn, but also no better than none
    noise = np.random.default_rng(1).normal(0, 0.3, 40)
    wide["dynamic"][:, 0] += noise * wide["dynamic"][:, 1]
    assert differences(wide, "none", 1000, 0)["dynamic"]["word"] == "not distinguishable"
    assert advised(wide)[0] == "yarn"
    best, text = advised(beyond_of(40))
    assert best == "none" and "no extension is distinguishably better" in text and "context_extension: none" in text
    best, text = advised(beyond_of(40, yarn=-1.0, dynamic=-1.0, linear=-1.0))
    assert best == "none" and "no extension is distinguishably better" in text
    best, text = advised(beyond_of(8, yarn=0.1))
    assert best == "none" and "too few to tell" in text and "Choose" not in text


def test_items_in_the_ledger_are_flagged(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    task = SimpleNamespace(eval_docs=range(20))
    items = [["hellaswag item 17", "hellaswag item 4"], ["sciq item 3"], None, None]
    pq.write_table(pa.table({"matched_items": items}), tmp_path / "ledger.parquet")
    assert flagged_items(tmp_path / "ledger.parquet", {"hellaswag": task}) == {"hellaswag": {4, 17}}
    both = flagged_items(tmp_path / "ledger.parquet", {"hellaswag": task, "sciq": task})
    assert both == {"hellaswag": {4, 17}, "sciq": {3}}, "every item that a row shares words with"
    assert flagged_items(tmp_path / "missing.parquet", {"hellaswag": None}) == {}


IM_SEP = "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize(("template", "asked"), [(IM_SEP, False), (None, True), ("as it is", True)])
def test_models_of_another_template_are_left_out_and_a_missing_pad_token_is_none_of_our_business(
    chat_tokenizers, template, asked
):
    tokenizer = copy.deepcopy(chat_tokenizers["byte_level"])
    tokenizer.pad_token = None
    tokenizer.chat_template = tokenizer.chat_template if template == "as it is" else template
    prompts = [[{"role": "user", "content": "x" * k}] for k in (1, 20)]
    found = measure(tiny_model(tokenizer, 64, 0), tokenizer, prompts, max_new_tokens=2, seed=0)
    assert found["greedy"]["replies"] == 2 if asked else "another than ChatML" in found["left_out"]
