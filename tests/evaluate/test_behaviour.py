"""Each figure of behaviour counts what its name says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nbutils.core.generation import Reply
from nbutils.core.models import tiny_model
from nbutils.evaluate.behaviour import figures_of, speaks_chatml, user_turns
from nbutils.evaluate.contamination import flagged_items
from nbutils.evaluate.context_curve import ORDER, advice, losses_of, measure_curve
from nbutils.evaluate.heldout import Conversation
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


def test_prompts_end_with_a_user_turn_and_fit(chat_tokenizers):
    tokenizer = chat_tokenizers["byte_level"]
    messages = [{"role": ("user", "assistant")[k % 2], "content": f"text {k} " * 5} for k in range(10)]
    conversations = [Conversation(row, messages) for row in range(30)]
    chosen = user_turns(conversations, tokenizer, 12, room=90, seed=0)
    assert len(chosen) == 12 and all(prompt[-1]["role"] == "user" for prompt in chosen)
    assert chosen == user_turns(conversations, tokenizer, 12, room=90, seed=0)
    assert user_turns(conversations, tokenizer, 12, room=5, seed=0) == []
    assert speaks_chatml(tokenizer)


def test_the_context_curve_covers_twice_the_trained_length(tmp_path):
    from datasets import Dataset
    from transformers import AutoTokenizer

    run = made_up_run(tmp_path / "run", evaluation=4)
    tokenizer = AutoTokenizer.from_pretrained(run / "data" / "tokenizer")
    model = tiny_model(tokenizer, 32, 0)
    assert measure_curve(model, run / "data", 3) is None, "without over-long conversations there is no curve"
    rng = np.random.default_rng(0)
    Dataset.from_list([{"input_ids": rng.integers(0, 100, n).tolist()} for n in (90, 20, 90, 32, 90)]).save_to_disk(
        str(run / "data" / "too_long")
    )
    assert measure_curve(tiny_model(tokenizer, 128, 0), run / "data", 3) is None, "the model reads them all"
    curve = measure_curve(model, run / "data", 3)
    assert curve["trained_length"] == 32 and set(curve["curves"]) == set(ORDER)
    assert curve["tokens_beyond"] == 3 * 32 and curve["best"] in ORDER
    assert curve["advice"].startswith("Beyond 32 tokens")
    ids = torch.tensor([rng.integers(0, 100, 40).tolist()])
    plain = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
    assert losses_of(model, ids.tolist(), "none")[0] == pytest.approx(plain.detach().numpy(), abs=1e-4)
    assert losses_of(model, ids.tolist(), "yarn")[0] != pytest.approx(plain.detach().numpy(), abs=1e-4)


def test_advice_follows_the_numbers():
    beyond = {"none": 5.0, "dynamic": 4.0, "yarn": 3.5, "linear": 4.5}
    assert "context_extension: yarn" in advice(beyond, 3.0, 1024)
    assert "context_extension: dynamic" in advice(beyond | {"dynamic": 3.505}, 3.0, 1024), "chat's default, if alike"
    assert "context_extension: none" in advice(beyond | {"none": 3.2}, 3.0, 1024)


def test_items_in_the_ledger_are_flagged(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"fate": "contaminated", "detail": "hellaswag item 17: «a b c»"},
        {"fate": "contaminated", "detail": "sciq item 3: «d e f»"},
        {"fate": "kept", "detail": "hellaswag item 18: «a b c»"},
        {"fate": "too_long", "detail": ""},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "ledger.parquet")
    assert flagged_items(tmp_path / "ledger.parquet", {"hellaswag": None}) == {"hellaswag": {17}}
    assert flagged_items(tmp_path / "missing.parquet", {"hellaswag": None}) == {}
