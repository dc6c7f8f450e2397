"""What `make demo` promises of its model, recomputed with plain transformers from the run that the notebooks made."""

from __future__ import annotations

import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer

from nbutils.core.files import read_json, read_jsonl
from nbutils.core.stages import STAGES

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def model(demo_run):
    return AutoModelForCausalLM.from_pretrained(demo_run / "train" / "final").eval()


def test_every_stage_is_done_and_most_of_the_time_is_training_and_evaluation(demo_run):
    records = {stage.name: read_json(demo_run / stage.name / "stage.json") for stage in STAGES}
    assert {record["status"] for record in records.values()} == {"done"}
    seconds = {name: record["seconds"] for name, record in records.items()}
    assert seconds["train"] + seconds["evaluate"] > sum(seconds.values()) / 2


def test_held_out_loss_is_under_four_and_a_half_nats_a_token(demo_run, model):
    total = count = right = supervised = 0.0
    for row in load_from_disk(str(demo_run / "data" / "eval")):
        ids = torch.tensor([row["input_ids"]])  # (1, T)
        mask = torch.tensor(row["supervised"][1:], dtype=torch.float32)  # (T-1,)
        with torch.inference_mode():
            losses = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        total, count = total + losses.double().sum().item(), count + len(losses)
        right, supervised = right + (losses.double() * mask).sum().item(), supervised + mask.sum().item()
    assert total / count < 4.5
    evaluations = [row for row in read_jsonl(demo_run / "train" / "metrics.jsonl") if row["kind"] == "eval"]
    assert evaluations[-1]["eval_loss_all_tokens"] == pytest.approx(total / count, abs=1e-4)
    assert evaluations[-1]["eval_loss"] == pytest.approx(right / supervised, abs=1e-4)  # the assistant's tokens alone
    assert evaluations[0]["eval_loss_all_tokens"] > 8.0


def test_nine_of_ten_greedy_replies_end_by_themselves(demo_run, model):
    tokenizer = AutoTokenizer.from_pretrained(demo_run / "train" / "final")
    rows = load_from_disk(str(demo_run / "data" / "eval")).select(range(50))
    ended = 0
    for row in rows:
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
