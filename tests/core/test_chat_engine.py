"""The chat engine against the loop that every tutorial has: render all turns, generate from scratch each turn."""

import re
from itertools import chain, zip_longest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from nbutils.chat.session import ChatSession
from nbutils.core.chat_engine.engine import AHEAD_PIECE
from nbutils.core.chat_engine.kvcache import KeyValueCache
from nbutils.core.chat_engine.reply import streamed
from nbutils.core.chat_engine.sampling import Sampling, next_id
from nbutils.core.chat_engine.window import KEPT, MessageTooLongError, Plan, Sizes, Window, rotary_module
from nbutils.core.chatml import encode
from nbutils.core.errors import UserError
from tests.chat.models import MODEL, TOKENIZER, ScriptedModel, chat, random_model, say, talk_as_generate
from tests.core.test_chatml import turns

WORDS = [f"turn {turn}: what now?" for turn in range(12)]


@pytest.mark.parametrize("extension,penalty", [("dynamic", 1.0), ("linear", 1.3), ("none", 1.3)])
def test_greedy_replies_equal_generate_across_the_crossing_and_evictions(extension, penalty):
    """Other models, and yarn, in `tests/chat/test_other_models.py`."""
    session = chat(context_extension=extension, repetition_penalty=penalty)
    seen = set()
    for text in WORDS[:8]:
        talk_as_generate(session, text)
        seen.add((session.context.dropped > 0, session.plan.extended))
        cost = session.measured
        assert cost.read_tokens + cost.reused_tokens + cost.new_tokens <= session.context.limit
    expected = {(False, False), (True, False)} if extension == "none" else {(False, False), (False, True), (True, True)}
    assert seen == expected  # the crossing and the eviction were both part of this


def test_repetition_penalty_of_likely_and_unlikely_tokens_is_that_of_transformers():
    torch.manual_seed(0)
    sampling = Sampling(greedy=True, repetition_penalty=1.5)
    for shift in (-8, 0, 8) * 20:  # all logits below 0, some, none
        logits, seen = torch.randn(20) + shift, torch.rand(20) < 0.5
        (expected,) = RepetitionPenaltyLogitsProcessor(1.5)(seen.nonzero().T, logits[None].clone())
        assert next_id(logits, seen, sampling, sampling.generator(0)) == expected.argmax()


def test_nucleus_holds_what_transformers_keeps():
    torch.manual_seed(0)
    logits = torch.randn(50)
    warped = TopPLogitsWarper(0.9)(None, TemperatureLogitsWarper(0.75)(None, logits[None]))[0]
    sampling, unseen = Sampling(repetition_penalty=1.0), torch.zeros(50, dtype=torch.bool)
    generator = sampling.generator(0)
    drawn = torch.tensor([next_id(logits, unseen, sampling, generator) for _ in range(4000)])
    found = torch.bincount(drawn, minlength=50) / 4000
    assert torch.equal(found > 0, warped.isfinite())
    assert (found - torch.softmax(warped, -1)).abs().max() < 0.02


def test_same_seed_same_conversation_also_behind_a_cleared_one_and_regeneration_differs():
    def talk(session):
        session.clear()
        return [*say(session, "hello"), "".join(session.regenerate()), *say(session, "more")]

    one, other = (chat(greedy=False, seed=seed, temperature=2.0) for seed in (7, 8))
    first = talk(one)
    assert first == talk(one) != talk(other) and first[0] != first[1]


def test_only_what_is_new_is_read():
    session = chat(read_ahead=False)
    say(session, "a first message")
    written = session.measured.new_tokens
    say(session, "second")
    assert session.measured.reused_tokens > 0
    assert session.measured.read_tokens <= written + len("user\nsecond\nassistant\n") + 6  # with control tokens
    list(session.edit("secund"))
    assert session.measured.read_tokens == len("und\nassistant\n") + 2
    list(session.regenerate())
    assert session.measured.read_tokens == 1


@pytest.mark.parametrize("pauses,extension", [(True, "dynamic"), (False, "dynamic"), (False, "none")])
def test_no_turn_waits_for_another_window_or_rotation(pauses, extension):
    """In pauses everything is read ahead, without a token to do it at; without any, that is done between tokens."""
    session = chat(
        random_model(TOKENIZER, context=512), context_extension=extension, max_new_tokens=1 if pauses else 20
    )
    plans = []
    for turn in range(50):
        text = f"turn {turn}: " + "what now? " * 3
        say(session, text)
        session.engine.wait() if pauses else session.engine.pause()
        if plans and session.plan != plans[-1]:
            late = 0 if pauses else AHEAD_PIECE
            assert session.measured.read_tokens <= len(text) + 40 + late, "the change of plan was prepared"
        assert len(session.engine.caches) <= 3
        plans.append(session.plan)
    assert len(set(plans)) > 3


def test_at_most_one_full_reading_per_eviction_without_pauses():
    session = chat(max_new_tokens=16, read_ahead=False)
    full, dropped = 0, {0}
    for text in WORDS:
        say(session, text)
        full += session.measured.reused_tokens < 20
        dropped.add(session.context.dropped)
        assert len(session.engine.caches) <= 3
    assert len(dropped) > 2
    assert full <= len(dropped) + 1  # with the first reading, and the crossing of the trained length


def test_two_sessions_share_a_model_with_different_rotations():
    def sessions():
        return [chat(context_extension=extension, read_ahead=False) for extension in ("dynamic", "linear")]

    text = "a message that crosses the trained length " * 4
    together = zip_longest(*(session.reply(text) for session in sessions()), fillvalue="")
    alone = ["".join(session.reply(text)) for session in sessions()]
    assert ["".join(pieces) for pieces in zip(*together, strict=True)] == alone
    rotary = rotary_module(MODEL)
    assert rotary.rope_type == "default" and torch.equal(rotary.inv_freq, rotary.original_inv_freq)


def test_ids_are_those_of_the_one_encoding(chat_tokenizers):
    texts = ("Hi <|im_end|>", "née 🌙\n", "", "  two  spaces")
    messages = [{"role": "system", "content": " Be brief. "}, *turns(*texts, *texts[::-1])]
    for tokenizer in chat_tokenizers.values():
        engine = ChatSession(ScriptedModel(tokenizer, []), tokenizer).engine
        for prompt in (False, True):
            expected = encode(tokenizer, messages, add_generation_prompt=prompt).input_ids
            assert engine.ids(messages, Plan(0, False), prompt=prompt) == expected


def test_after_a_failed_pass_the_cache_gives_what_the_model_gives_without_any():
    cache = KeyValueCache(MODEL, None)
    cache.read(list(range(30)))
    broken = MODEL.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cache.read(list(range(50)))
    broken.remove()
    ids = [*range(20), *range(60, 80)]
    with torch.inference_mode():
        assert torch.allclose(cache.read(ids), MODEL(torch.tensor([ids])).logits[0, -1], atol=1e-4)
    assert cache.ids == ids and cache.reused == 20


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=60, deadline=None)
def test_streamed_text_is_the_decoded_whole(text):
    pieces = list(streamed(TOKENIZER, TOKENIZER(text, split_special_tokens=True)["input_ids"]))
    assert "".join(pieces) == text.strip() and all(pieces)
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_nothing_is_lost_behind_a_byte_that_makes_no_character(chat_tokenizers, data):
    """Byte fallback turns a whole run of bytes into U+FFFD when one of them is wrong, those already shown too."""
    tokenizer = chat_tokenizers["sentencepiece"]
    moon = tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in "🌙".encode()])
    words = [[tokenizer.convert_tokens_to_ids(f"▁{word}")] for word in ("fine", "and", "you")]
    text = tokenizer("naïve “quotes” 你好 don 't  two  spaces .\nnew line 👩‍👩‍👧", add_special_tokens=False)[
        "input_ids"
    ]
    parts = data.draw(st.lists(st.sampled_from([moon, moon[:1], moon[:2], moon[2:], text, *words]), max_size=8))
    ids = [*chain(*parts)]
    shown = "".join(streamed(tokenizer, ids))
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert re.findall("[a-z]", shown) == re.findall("[a-z]", whole)
    assert "\ufffd" in whole or shown == whole.strip()


@given(
    turns=st.lists(st.integers(1, 300), max_size=30),
    newest=st.integers(1, 1200),
    dropped=st.integers(0, 5),
    fixed=st.integers(1, 100),
)
@settings(max_examples=200, deadline=None)
def test_the_window_never_overflows_and_keeps_whole_turns(turns, newest, dropped, fixed):
    window, sizes, dropped = Window(512, 1024, 100), Sizes(fixed, turns, newest), min(dropped, len(turns))
    if fixed + newest > window.room:
        with pytest.raises(MessageTooLongError) as error:
            window.plan(sizes, dropped)
        assert (error.value.tokens, error.value.room) == (newest, window.room - fixed)
        return
    plan = window.plan(sizes, dropped)
    used = sizes.used(plan.dropped)
    assert plan.dropped >= dropped and used <= window.room
    if plan.dropped > dropped:  # only when it had to, and then enough for many turns
        assert sizes.used(dropped) > window.room
        overflow = max(0, sizes.used(dropped) - newest - window.room)  # of a reply, behind the last message
        assert used - newest <= max(KEPT * window.room + overflow + max(turns), fixed)
    assert plan.extended == (plan.dropped > 0 or used + window.max_new_tokens > window.trained)


@given(
    spoken=st.lists(st.tuples(st.integers(1, 80), st.integers(1, 104)), min_size=20, max_size=40),
    fixed=st.integers(1, 60),
    limit=st.sampled_from([512, 1024]),
)
@settings(max_examples=60, deadline=None)
def test_a_plan_is_known_before_it_is_needed_and_stays_so(spoken, fixed, limit):
    """Where no turn is longer than a fifth of the room (of 924 or 412 tokens)."""
    window, turns, plan, ahead = Window(512, limit, 100), [], Plan(0, False), {Plan(0, False)}
    for message, reply in ((size * limit // 1024 for size in turn) for turn in spoken):
        plan = window.plan(Sizes(fixed, turns, message), plan.dropped)
        assert plan in ahead
        while_written = window.coming(Sizes(fixed, turns, message), plan.dropped)
        turns.append(message + reply)
        sizes = Sizes(fixed, turns)
        coming = window.coming(sizes, plan.dropped)
        ahead = {window.plan(sizes, plan.dropped)} | ({coming.plan} if coming else set())
        used = sizes.used(plan.dropped)
        assert not while_written or while_written.due(used) <= 0 or while_written.plan in ahead
        if coming:
            assert 0 < coming.due(used) <= coming.due(used + 1) <= 1 and coming.plan != plan


def test_stop_ends_the_reading_of_a_long_prompt():
    session = chat(random_model(TOKENIZER, context=4096), read_ahead=False)
    stream = session.reply("x" * 3000)
    session.stop()
    assert list(stream) == []
    assert session.measured.ended == "stopped" and session.measured.read_tokens < 3000
    assert [m["role"] for m in session.messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    "settings,words",
    [({"max_new_tokens": 4096}, "at most 128"), ({"context_extension": "ntk"}, "dynamic, yarn, linear, none")],
)
def test_settings_that_the_model_cannot_meet_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        chat(**settings)
