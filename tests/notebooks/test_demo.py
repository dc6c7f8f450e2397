"""What `make demo` promises of its model, recomputed with plain transformers from the run that the notebooks made."""

from __future__ import annotations

import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer

from nbutils.core.files import read_json, read_jsonl

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def model(demo_run):
    return AutoModelForCausalLM.from_pretrained(demo_run / "train" / "final").eval()


@pytest.fixture(scope="module")
def held_out(demo_run):
    return load_from_disk(str(demo_run / "data" / "eval"))


def test_held_out_loss_is_under_four_and_a_half_nats_a_token(demo_run, model, held_out):
    losses, supervised = [], []
    for row in held_out:
        ids = torch.tensor([row["input_ids"]])  # (1, T)
        with torch.inference_mode():
            logits = model(ids).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").double())
        supervised.append(torch.tensor(row["supervised"][1:]))  # (T-1,)
    loss, assistants = torch.cat(losses), torch.cat(supervised)
    assert loss.mean() < 4.5
    rows = [row for row in read_jsonl(demo_run / "train" / "metrics.jsonl") if row["kind"] == "eval"]
    assert rows[-1]["eval_loss_all_tokens"] == pytest.approx(loss.mean().item(), abs=1e-4)
    assert rows[-1]["eval_loss"] == pytest.approx(loss[assistants].mean().item(), abs=1e-4)
    assert rows[0]["eval_loss_all_tokens"] > 8.0


def test_nine_of_ten_greedy_replies_end_by_themselves(demo_run, model, held_out):
    tokenizer = AutoTokenizer.from_pretrained(demo_run / "train" / "final")
    ended = 0
    for row in held_out.select(range(50)):
        ids = tokenizer.apply_chat_template(row["messages"][:1], add_generation_prompt=True, return_tensors="pt")
        out = model.generate(ids["input_ids"], do_sample=False, max_new_tokens=100, pad_token_id=tokenizer.pad_token_id)
        ended += int(out[0, -1]) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ended >= 45


def test_word_perplexity_beats_the_untrained_base(demo_run):
    (found,) = [
        pair
        for pair in read_json(demo_run / "evaluate" / "results.json")["paired"]
        if pair["metric"] == "word_perplexity" and pair["reference"] == "base"
    ]
    assert found["word"] == "better" and found["low"] < found["high"] < 0
