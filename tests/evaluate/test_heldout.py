"""The embedded tasks' items say what they should, and the harness reads them as the model was trained."""

import pytest
from datasets import load_from_disk
from lm_eval.models.huggingface import HFLM

from nbutils.core.chatml import CHATML, IM_END, encode
from nbutils.core.run.models import tiny_model
from nbutils.evaluate.behaviour import user_turns
from nbutils.evaluate.heldout import read_conversations, reply_items, selection
from tests.evaluate.runs import hold_out, planned, turns


@pytest.fixture(scope="module")
def plan(run_folder):
    return planned(run_folder)


def test_all_real_conversations_read_back_as_their_token_ids(plan, run_folder):
    held_out = load_from_disk(run_folder / "data" / "eval")
    assert [c.messages for c in plan.conversations] == list(held_out["messages"])


def test_a_conversation_that_spells_a_control_token_stays_out(own_run, plan):
    hold_out(own_run, [turns(f"hi {IM_END} there", "hello"), turns("hi", "hello")])
    assert [c.row for c in read_conversations(own_run / "data", plan.tokenizer)] == [1]


def test_what_the_assistant_is_not_to_learn_is_context_and_nobodys_reply(own_run, plan):
    """Otherwise a model is measured by the answers that its data calls wrong."""
    talks = [turns(f"{k}+2?", f"wrong {k}", f"sure, {k}?", f"right {k}") for k in range(6)]
    for messages in talks:
        messages[1]["learn"] = False
    hold_out(own_run, talks)
    found = read_conversations(own_run / "data", plan.tokenizer)
    assert [c.messages for c in found] == talks
    items = [*reply_items(found), *selection(found, 12, seed=0)]
    assert len(items) == 6 + 12 and all("wrong" in item["context"] for item in items)
    assert "wrong" not in str([item["choices"] for item in items])
    assert [len(talk) for talk in user_turns(found, plan.tokenizer, 6, room=90, seed=0)] == [4] * 6


def test_a_reply_is_scored_with_its_end_and_without_its_header(plan):
    """header + reply + end, minus header, is exactly what training supervises in that turn."""
    lm = HFLM(tiny_model(plan.tokenizer, 256, 0), tokenizer=plan.tokenizer)
    for item in reply_items(plan.conversations[:5]):
        messages = plan.conversations[item["conversation"]].messages[: item["turn"] + 1]
        whole = encode(plan.tokenizer, messages)
        last = len(encode(plan.tokenizer, messages[:-1], add_generation_prompt=True))
        (context, opening), (same, both) = (lm._encode_pair(item["context"], choice) for choice in item["choices"])
        assert context == same and context + both == whole.input_ids[: len(context) + len(both)]
        assert len(context) + len(opening) == last
        supervised = [i for i, s in zip(whole.input_ids[last:], whole.supervised[last:], strict=True) if s]
        assert both[len(opening) :] == supervised


def test_selection_offers_four_utterances_of_which_one_is_true(plan):
    talks = {c.row: c.messages for c in plan.conversations}
    replies = len(list(reply_items(plan.conversations)))
    items = selection(plan.conversations, replies + 10, seed=0)
    assert len(items) >= replies + 10, "the user's fill up where the assistant's turns do not suffice"
    assert [item["role"] for item in items[:replies]] == ["assistant"] * replies
    for item in items:
        own = item["conversation"]
        texts = [choice.split("\n", 2)[2].removesuffix(IM_END) for choice in item["choices"]]
        assert len({text.casefold() for text in texts}) == 4
        *before, true = talks[own][: item["turn"] + 1]
        assert (true["role"], true["content"].strip()) == (item["role"], texts.pop(item["label"]))
        assert item["context"] + "\n" == CHATML.render(before)
        assert set(texts) <= {m["content"].strip() for row, said in talks.items() if row != own for m in said}
    assert {item["label"] for item in items} == {0, 1, 2, 3}
    again, other = (selection(plan.conversations, replies + 10, seed) for seed in (0, 1))
    assert items == again != other
    assert replies > len(selection(plan.conversations, 40, seed=0)) >= 40


def test_prompts_end_with_a_user_turn_and_fit(plan):
    chosen, again, none = (user_turns(plan.conversations, plan.tokenizer, 12, room, seed=0) for room in (90, 90, 5))
    assert len(chosen) == 12 and all([m["role"] for m in talk[-2:]] == ["user", "assistant"] for talk in chosen)
    assert max(len(encode(plan.tokenizer, talk[:-1], add_generation_prompt=True)) for talk in chosen) <= 90
    assert chosen == again and none == []
