"""What `make demo` promises of its model, recomputed with plain transformers, and what notebook 05 says of it."""

import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer

from nbutils.chat.models import load
from nbutils.chat.session import play
from nbutils.core.files import read_json, read_jsonl
from nbutils.core.stages import spec
from nbutils.pipeline.parameters import settings_of
from tests.chat.models import contents

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def model(demo_run):
    return AutoModelForCausalLM.from_pretrained(demo_run / "train" / "final").eval()


@pytest.fixture(scope="module")
def held_out(demo_run):
    return load_from_disk(demo_run / "data" / "eval")


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
        inputs = tokenizer.apply_chat_template(row["messages"][:1], add_generation_prompt=True, return_tensors="pt")
        out = model.generate(**inputs, do_sample=False, max_new_tokens=100)
        ended += int(out[0, -1]) == tokenizer.eos_token_id
    assert ended >= 45


def test_word_perplexity_beats_the_untrained_base(demo_run):
    (found,) = [
        pair
        for pair in read_json(demo_run / "evaluate" / "results.json")["paired"]
        if pair["metric"] == "word_perplexity" and pair["reference"] == "base"
    ]
    assert found["word"] == "better" and found["low"] < found["high"] < 0


def test_try_this_holds_for_the_demo_model(demo_run):
    final = load("final", demo_run)
    given = settings_of(spec("chat"), {"run_dir": str(demo_run)})

    def replies(**changes):
        transcript = play(final, given.scripted_messages, given.session_settings() | changes)
        return contents(transcript["messages"])[1::2]

    def words_of(texts):
        return {word for text in texts for word in text.lower().split()}

    dull = replies(greedy=True, repetition_penalty=1.0)
    assert len(set(dull)) < len(dull), "greedy replies resemble each other"
    hot, normal = words_of(replies(temperature=2.0, top_p=1.0)), words_of(replies())
    known = words_of(replies(seed=1) + replies(seed=2) + replies(seed=3))
    assert len(hot & known) / len(hot) < len(normal & known) / len(normal), "hot replies fall apart into stray words"
