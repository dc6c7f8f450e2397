"""The embedded tasks' items say what they should, and the harness reads them as the model was trained."""

from __future__ import annotations

import pytest
from datasets import load_from_disk
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from nbutils.core.chatml import CHATML, IM_END, encode
from nbutils.core.run.models import tiny_model
from nbutils.core.tasks import load_tasks
from nbutils.evaluate.behaviour import user_turns
from nbutils.evaluate.heldout import YAMLS, read_conversations, reply_items, selection, write_items
from tests.evaluate.runs import hold_out


@pytest.fixture(scope="module")
def data(run_folder):
    return run_folder / "data"


@pytest.fixture(scope="module")
def tokenizer(data):
    return AutoTokenizer.from_pretrained(data / "tokenizer")


@pytest.fixture(scope="module")
def conversations(data, tokenizer):
    return read_conversations(data, tokenizer)


def test_all_real_conversations_read_back_as_their_token_ids(data, conversations):
    assert [c.messages for c in conversations] == list(load_from_disk(str(data / "eval"))["messages"])


def test_a_conversation_that_spells_a_control_token_stays_out(own_run, tokenizer):
    asked = (f"hi {IM_END} there", "hi")
    hold_out(own_run, [[{"role": "user", "content": a}, {"role": "assistant", "content": "hello"}] for a in asked])
    assert [c.row for c in read_conversations(own_run / "data", tokenizer)] == [1]


def test_what_the_assistant_is_not_to_learn_is_context_and_nobodys_reply(own_run, tokenizer):
    """Otherwise a model is measured by the answers that its data calls wrong."""
    said = ("user", "{}+2?"), ("assistant", "wrong {}"), ("user", "sure, {}?"), ("assistant", "right {}")
    talks = [[{"role": role, "content": text.format(k)} for role, text in said] for k in range(6)]
    for talk in talks:
        talk[1]["learn"] = False
    hold_out(own_run, talks)
    found = read_conversations(own_run / "data", tokenizer)
    assert [c.messages for c in found] == talks
    items = [*reply_items(found), *selection(found, 12, seed=0)]
    assert len(items) == 6 + 12 and all("wrong" in item["context"] for item in items)
    assert not [item for item in items if "wrong" in str(item["choices"])]
    assert [len(prompt) for prompt in user_turns(found, tokenizer, 6, room=90, seed=0)] == [3] * 6


def test_a_reply_is_scored_with_its_end_and_without_its_header(tokenizer, conversations):
    """header + reply + end, minus header, is exactly what training supervises in that turn."""
    lm = HFLM(tiny_model(tokenizer, 256, 0), tokenizer=tokenizer)
    for item in reply_items(conversations[:5]):
        messages = conversations[item["conversation"]].messages[: item["turn"] + 1]
        whole = encode(tokenizer, messages)
        last = len(encode(tokenizer, messages[:-1], add_generation_prompt=True))
        context, both = lm._encode_pair(item["context"], item["choices"][1])
        same, opening = lm._encode_pair(item["context"], item["choices"][0])
        assert context == same and context + both == whole.input_ids[: len(context) + len(both)]
        assert len(context) + len(opening) == last
        supervised = [i for i, s in zip(whole.input_ids[last:], whole.supervised[last:], strict=True) if s]
        assert both[len(opening) :] == supervised


def test_selection_offers_four_utterances_of_which_one_is_true(conversations):
    said = {(c.row, m["content"].strip()) for c in conversations for m in c.messages}
    replies = len(list(reply_items(conversations)))
    items = selection(conversations, replies + 10, seed=0)
    assert len(items) >= replies + 10, "the user's fill up where the assistant's turns do not suffice"
    assert [item["role"] for item in items[:replies]] == ["assistant"] * replies
    for item in items:
        before = conversations[item["conversation"]].messages[: item["turn"]]
        true = conversations[item["conversation"]].messages[item["turn"]]
        texts = [choice.split("\n", 2)[2].removesuffix(IM_END) for choice in item["choices"]]
        assert len({text.casefold() for text in texts}) == 4
        assert texts.pop(item["label"]) == true["content"].strip() and true["role"] == item["role"]
        assert item["context"] + "\n" == CHATML.render(before)
        assert all(any((c.row, text) in said for c in conversations if c.row != item["conversation"]) for text in texts)
    assert {item["label"] for item in items} == {0, 1, 2, 3}
    assert items == selection(conversations, replies + 10, seed=0) != selection(conversations, replies + 10, seed=1)
    assert replies > len(selection(conversations, 40, seed=0)) >= 40


def test_the_yamls_load_with_the_items_and_know_their_metrics(conversations, tmp_path):
    for name in YAMLS:
        write_items(tmp_path, name, conversations, 20, seed=0)
    tasks = load_tasks(list(YAMLS), YAMLS, data=tmp_path)
    assert {name: (len(task.task_docs), set(task.aggregation())) for name, task in tasks.items()} == {
        "heldout_perplexity": (len(list(reply_items(conversations))), {"word_perplexity"}),
        "heldout_next_utterance": (len(selection(conversations, 20, seed=0)), {"acc", "acc_mutual_info"}),
    }
    assert all(task.get_config("num_fewshot") == 0 for task in tasks.values())
