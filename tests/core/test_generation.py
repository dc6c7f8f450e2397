"""Replies in batches: the same as one by one, and the same as in the chat."""

from __future__ import annotations

import torch

from nbutils.chat.session import ChatSession
from nbutils.core.chat_engine.generation import generate_replies
from tests.chat.models import byte_tokenizer, random_model

TOKENIZER = byte_tokenizer()
CONVERSATIONS = [[{"role": "user", "content": "hi " * k}] for k in (1, 7, 3, 12)]
CONVERSATIONS.append([*CONVERSATIONS[0], {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}])


def test_greedy_replies_do_not_depend_on_the_batch_and_equal_the_chat():
    model = random_model(TOKENIZER, context=256).train()
    alone = generate_replies(model, TOKENIZER, CONVERSATIONS, max_new_tokens=12, batch_size=1)
    assert generate_replies(model, TOKENIZER, CONVERSATIONS, max_new_tokens=12, batch_size=3) == alone
    assert model.training, "the mode is as it was"
    session = ChatSession(model, TOKENIZER, greedy=True, repetition_penalty=1.0, max_new_tokens=12)
    for conversation, reply in zip(CONVERSATIONS[:4], alone, strict=False):
        session.clear()
        assert "".join(session.reply(conversation[0]["content"])) == reply.text
        assert reply.ended == (session.measured.ended == "end") and len(reply.token_ids) <= 12


def test_sampled_replies_repeat_with_their_seed_and_leave_torch_alone():
    model = random_model(TOKENIZER, context=256)
    state = torch.random.get_rng_state()
    settings = {"max_new_tokens": 12, "greedy": False}
    first = generate_replies(model, TOKENIZER, CONVERSATIONS, seed=1, **settings)
    assert first == generate_replies(model, TOKENIZER, CONVERSATIONS, seed=1, **settings)
    assert first != generate_replies(model, TOKENIZER, CONVERSATIONS, seed=2, **settings)
    assert torch.equal(state, torch.random.get_rng_state())
    assert generate_replies(model, TOKENIZER, [], max_new_tokens=3) == []


def test_a_reply_that_the_model_ends_says_so():
    model = random_model(TOKENIZER, context=256)
    model.lm_head.bias.data[TOKENIZER.eos_token_id] = 1000.0
    (reply,) = generate_replies(model, TOKENIZER, CONVERSATIONS[:1], max_new_tokens=5)
    assert (reply.text, reply.token_ids, reply.ended) == ("", [], True)
