"""The embedded tasks' items say what they should, and the harness reads them as the model was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from nbutils.core.chatml import CHATML, IM_END, encode
from nbutils.core.run.models import tiny_model
from nbutils.core.tasks import load_tasks
from nbutils.evaluate.heldout import YAMLS, read_conversations, reply_items, selection, write_items
from tests.builders import data_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return data_folder(tmp_path_factory.mktemp("run"), train=4, evaluation=30, turns=6)


@pytest.fixture(scope="module")
def tokenizer(data):
    return AutoTokenizer.from_pretrained(data / "tokenizer")


@pytest.fixture(scope="module")
def conversations(data, tokenizer):
    return read_conversations(data, tokenizer)


def test_all_real_conversations_read_back_as_their_token_ids(data, conversations):
    assert len(conversations) == len(load_from_disk(str(data / "eval")))


def test_a_conversation_that_spells_a_control_token_stays_out(data, tokenizer, tmp_path):
    forged = [{"role": "user", "content": f"hi {IM_END} there"}, {"role": "assistant", "content": "hello"}]
    plain = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows = [{"messages": m, "input_ids": encode(tokenizer, m).input_ids} for m in (forged, plain)]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "eval"))
    assert [c.row for c in read_conversations(tmp_path, tokenizer)] == [1]


def test_a_reply_is_scored_with_its_end_and_without_its_header(tokenizer, conversations, data):
    """header + reply + end, minus header, is exactly what training supervises in that turn."""
    lm = HFLM(tiny_model(tokenizer, 256, 0), tokenizer=tokenizer)
    for item in list(reply_items(conversations[:5])):
        messages = next(c for c in conversations if c.row == item["conversation"]).messages[: item["turn"] + 1]
        whole = encode(tokenizer, messages)
        last = len(encode(tokenizer, messages[:-1], add_generation_prompt=True))
        context, both = lm._encode_pair(item["context"], item["choices"][1])
        same, opening = lm._encode_pair(item["context"], item["choices"][0])
        assert context == same and context + both == whole.input_ids[: len(context) + len(both)]
        assert len(context) + len(opening) == last
        supervised = [i for i, s in zip(whole.input_ids[last:], whole.supervised[last:], strict=True) if s]
        assert both[len(opening) :] == supervised


def test_selection_offers_four_utterances_of_which_one_is_true(conversations):
    by_row = {c.row: c for c in conversations}
    items = selection(conversations, 40, seed=0)
    assert len(items) >= 40
    for item in items:
        true = by_row[item["conversation"]].messages[item["turn"]]
        texts = [choice.split("\n", 2)[2].removesuffix(IM_END) for choice in item["choices"]]
        assert len({text.casefold() for text in texts}) == 4
        assert texts[item["label"]] == true["content"].strip() and true["role"] == item["role"]
        assert item["context"] + "\n" == CHATML.render(by_row[item["conversation"]].messages[: item["turn"]])
        for k, text in enumerate(texts):
            if k != item["label"]:
                assert any(text == m["content"].strip() for c in conversations for m in c.messages
                           if c.row != item["conversation"])  # fmt: skip
    labels = [item["label"] for item in items]
    assert min(labels.count(k) for k in range(4)) > 0
    assert items == selection(conversations, 40, seed=0) != selection(conversations, 40, seed=1)


def test_assistants_turns_come_first_and_users_fill_up(conversations):
    replies = len(list(reply_items(conversations)))
    items = selection(conversations, replies + 10, seed=0)
    assert sum(item["role"] == "assistant" for item in items) == replies
    assert len(items) >= replies + 10


def test_the_yamls_load_with_the_items_and_know_their_metrics(conversations, tmp_path):
    write_items(tmp_path, conversations, 20, seed=0)
    tasks = load_tasks(list(YAMLS), YAMLS, data=tmp_path)
    assert len(tasks["heldout_perplexity"].task_docs) == len(list(reply_items(conversations)))
    assert len(tasks["heldout_next_utterance"].task_docs) == len(selection(conversations, 20, seed=0))
    assert set(tasks["heldout_next_utterance"].aggregation()) == {"acc", "acc_mutual_info"}
    assert set(tasks["heldout_perplexity"].aggregation()) == {"word_perplexity"}
    assert all(task.get_config("num_fewshot") == 0 for task in tasks.values())
