"""Replies in batches: the same as one by one, and the same as in the chat."""

import torch

from nbutils.core.chat_engine.generation import Reply, generate_replies
from tests.chat.models import MODEL, TOKENIZER, chat, random_model, say
from tests.core.test_chatml import turns

TEXTS = ["hi " * k for k in (1, 7, 3, 12)]
CONVERSATIONS = [*map(turns, TEXTS), turns("a", "b", "c")]


def test_greedy_replies_do_not_depend_on_the_batch_and_equal_the_chat():
    model = random_model(TOKENIZER, context=256).train()
    alone = generate_replies(model, TOKENIZER, CONVERSATIONS, max_new_tokens=12, batch_size=1)
    assert generate_replies(model, TOKENIZER, CONVERSATIONS, max_new_tokens=12, batch_size=3) == alone
    assert model.training, "the mode is as it was"
    for text, reply in zip(TEXTS, alone, strict=False):
        session = chat(model, read_ahead=False)
        assert say(session, text) == [reply.text]
        assert reply.ended == (session.measured.ended == "end") and len(reply.token_ids) <= 12


def test_sampled_replies_repeat_with_their_seed_and_leave_torch_alone():
    def sampled(seed):
        return generate_replies(MODEL, TOKENIZER, CONVERSATIONS[:2], seed=seed, max_new_tokens=12, greedy=False)

    state = torch.random.get_rng_state()
    assert sampled(1) == sampled(1) != sampled(2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert generate_replies(MODEL, TOKENIZER, [], max_new_tokens=3) == []


def test_a_reply_that_the_model_ends_says_so():
    model = random_model(TOKENIZER, context=256)
    model.lm_head.bias.data[TOKENIZER.eos_token_id] = 1000.0
    assert generate_replies(model, TOKENIZER, CONVERSATIONS[:1], max_new_tokens=5) == [Reply("", [], ended=True)]
