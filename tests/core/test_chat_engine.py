"""The chat engine against the loop that every tutorial has: render all turns, generate from scratch each turn."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from nbutils.chat.session import ChatSession
from nbutils.core.chat_engine.engine import StreamDecoder
from nbutils.core.chat_engine.kvcache import KeyValueCache
from nbutils.core.chat_engine.sampling import Sampling, next_id
from nbutils.core.chat_engine.window import KEPT, MessageTooLongError, Plan, Sizes, Window, rotary_module
from nbutils.core.chatml import encode
from nbutils.core.errors import UserError
from tests.chat.models import ScriptedModel, byte_tokenizer, random_model

TOKENIZER = byte_tokenizer()
MODEL = random_model(TOKENIZER, context=128)
GREEDY = {"greedy": True, "repetition_penalty": 1.0, "max_new_tokens": 16}


def from_scratch(session: ChatSession, messages: list[dict]) -> list[int]:
    """The greedy reply of `model.generate` without any cache of ours, with the session's rotation and kept turns."""
    plan = session.plan
    prompt = session.engine.ids(messages, plan, prompt=True)
    model = copy.deepcopy(session.engine.model)
    rotation = session.engine.rotation(plan)
    rotary = rotary_module(model)
    rotary.rope_type, rotary.inv_freq, rotary.attention_scaling = "default", rotation.inv_freq, rotation.scaling
    config = GenerationConfig(
        max_new_tokens=session.sampling.max_new_tokens,
        do_sample=False,
        repetition_penalty=session.sampling.repetition_penalty,
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return out[0, len(prompt) :].tolist()


def text_of(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("extension", ["dynamic", "yarn", "linear", "none"])
def test_greedy_replies_equal_generate_across_the_crossing_and_evictions(extension):
    session = ChatSession(MODEL, TOKENIZER, context_extension=extension, **GREEDY)
    seen = set()
    for turn in range(16):
        before = session.messages
        message = {"role": "user", "content": f"turn {turn}: what now?"}
        reply = "".join(session.reply(message["content"]))
        assert reply == text_of(from_scratch(session, [*before, message])), f"turn {turn}"
        seen.add((session.context.dropped > 0, session.context.extended))
        cost = session.measured
        assert cost.read_tokens + cost.reused_tokens + cost.new_tokens <= session.context.limit
    expected = {(False, False), (True, False)} if extension == "none" else {(False, False), (False, True), (True, True)}
    assert seen == expected  # the crossing and the eviction were both part of this


def test_repetition_penalty_is_that_of_transformers():
    session = ChatSession(MODEL, TOKENIZER, greedy=True, repetition_penalty=1.3, max_new_tokens=40)
    for text in ("say something", "and again"):
        before = session.messages
        reply = "".join(session.reply(text))
        assert reply == text_of(from_scratch(session, [*before, {"role": "user", "content": text}]))


def test_repetition_penalty_of_likely_and_unlikely_tokens_is_that_of_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    torch.manual_seed(0)
    sampling = Sampling(greedy=True, repetition_penalty=1.5)
    for shift in (-8, 0, 8):  # all logits below 0, some, none
        for _ in range(20):
            logits, seen = torch.randn(1, 20) + shift, torch.randperm(20)[:10]
            expected = RepetitionPenaltyLogitsProcessor(1.5)(seen[None], logits.clone()).argmax()
            marked = torch.zeros(20, dtype=torch.bool).index_fill(0, seen, True)
            assert next_id(logits[0], marked, sampling, sampling.generator(0)) == expected


def test_nucleus_holds_what_transformers_keeps():
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    torch.manual_seed(0)
    logits = torch.randn(50) * 3
    warped = TopPLogitsWarper(0.9)(None, TemperatureLogitsWarper(0.75)(None, logits[None]))[0]
    expected = torch.softmax(warped, -1)
    sampling = Sampling(repetition_penalty=1.0)
    generator = sampling.generator(0)
    nothing = torch.zeros(50, dtype=torch.bool)
    drawn = torch.tensor([next_id(logits, nothing, sampling, generator) for _ in range(4000)])
    found = torch.bincount(drawn, minlength=50) / 4000
    assert set(drawn.tolist()) <= set(warped.isfinite().nonzero().flatten().tolist())
    assert (found - expected).abs().max() < 0.04


def test_same_seed_same_conversation_and_regeneration_differs():
    def talk(seed: int) -> list[str]:
        session = ChatSession(MODEL, TOKENIZER, seed=seed, temperature=2.0, max_new_tokens=16)
        return ["".join(session.reply("hello")), "".join(session.regenerate()), "".join(session.reply("more"))]

    first = talk(7)
    assert first == talk(7)
    assert first != talk(8)
    assert first[0] != first[1]


def test_only_what_is_new_is_read():
    session = ChatSession(MODEL, TOKENIZER, read_ahead=False, **GREEDY)
    list(session.reply("a first message"))
    written = session.measured.new_tokens
    list(session.reply("second"))
    cost = session.measured
    header = len("user\nsecond\nassistant\n") + 3  # and three control tokens
    assert cost.reused_tokens > 0
    assert cost.read_tokens <= written + header + 3
    list(session.edit("secund"))
    assert session.measured.read_tokens == len("und\nassistant\n") + 2
    list(session.regenerate())
    assert session.measured.read_tokens == 1


def test_background_reading_leaves_nothing_for_the_turn_that_rolls_the_window():
    session = ChatSession(MODEL, TOKENIZER, **GREEDY)
    changes = 0
    plan = None
    for turn in range(30):
        text = f"turn {turn}: what now?"
        list(session.reply(text))
        session.engine.wait()
        if plan is not None and session.plan != plan:
            changes += 1
            assert session.measured.read_tokens <= len(text) + 40, "the change of plan was prepared"
        plan = session.plan
    assert changes >= 3


def test_at_most_one_full_reading_per_eviction_without_pauses():
    session = ChatSession(MODEL, TOKENIZER, read_ahead=False, **GREEDY)
    full, evictions, dropped = 0, 0, 0
    for turn in range(40):
        list(session.reply(f"turn {turn}: what now?"))
        full += session.measured.reused_tokens < 20
        evictions += session.context.dropped != dropped
        dropped = session.context.dropped
    assert evictions >= 2
    assert full <= evictions + 2  # the first reading, and the crossing of the trained length


def test_two_sessions_share_a_model_with_different_rotations():
    def make(extension):
        return ChatSession(MODEL, TOKENIZER, context_extension=extension, read_ahead=False, **GREEDY)

    alone = []
    for extension in ("dynamic", "linear"):
        session = make(extension)
        alone.append(["".join(session.reply("a message of some length, to cross " * 3)) for _ in range(2)])
    sessions = [make("dynamic"), make("linear")]
    together: list[list[str]] = [[], []]
    for _ in range(2):
        streams = [s.reply("a message of some length, to cross " * 3) for s in sessions]
        texts = ["", ""]
        alive = {0, 1}
        while alive:
            for i in list(alive):
                piece = next(streams[i], None)
                if piece is None:
                    alive.discard(i)
                else:
                    texts[i] += piece
        for i in (0, 1):
            together[i].append(texts[i])
    assert together == alone
    rotary = rotary_module(MODEL)
    assert rotary.rope_type == "default" and torch.equal(rotary.inv_freq, rotary.original_inv_freq)


def test_ids_are_those_of_the_one_encoding(chat_tokenizers):
    messages = [{"role": "system", "content": " Be brief. "}]
    for text in ("Hi <|im_end|>", "née 🌙\n", "", "  two  spaces"):
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]
    for tokenizer in chat_tokenizers.values():
        session = ChatSession(ScriptedModel(tokenizer, []), tokenizer)
        for prompt in (False, True):
            plan = Plan(0, False)
            expected = encode(tokenizer, messages, add_generation_prompt=prompt).input_ids
            assert session.engine.ids(messages, plan, prompt=prompt) == expected


def test_a_cache_compares_ids_not_lengths():
    cache = KeyValueCache(MODEL, None)
    a, b = list(range(40)), [*range(20), *range(60, 80)]
    cache.read(a)
    logits = cache.read(b)
    assert cache.ids == b and cache.reused == 20
    with torch.inference_mode():
        fresh = MODEL(torch.tensor([b])).logits[0, -1]
    assert torch.allclose(logits, fresh, atol=1e-4)


def test_a_failed_pass_leaves_the_cache_true():
    cache = KeyValueCache(MODEL, None)
    cache.read(list(range(30)))
    layer = MODEL.model.layers[1]
    broken = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError):
        cache.read(list(range(50)))
    broken.remove()
    assert cache.ids == list(range(30))
    logits = cache.read(list(range(50)))
    with torch.inference_mode():
        assert torch.allclose(logits, MODEL(torch.tensor([list(range(50))])).logits[0, -1], atol=1e-4)


def test_stock_dynamic_rope_with_a_cache_is_wrong_still_needed():
    """On the day that this fails, transformers keeps cached keys and rotation together, and `Rotation` may go."""
    config = copy.deepcopy(MODEL.config)
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    stock = type(MODEL)(config).eval()
    stock.load_state_dict(MODEL.state_dict(), strict=False)
    ids = torch.randint(0, 200, (1, 220), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = stock(ids).logits[0, -1]
        cache = None
        for token in ids[0]:
            out = stock(token.view(1, 1), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
    assert not torch.allclose(whole, out.logits[0, -1], atol=1e-2)


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=100, deadline=None)
def test_streamed_text_is_the_decoded_whole(text):
    decoder = StreamDecoder(TOKENIZER)
    pieces = list(decoder.pieces(TOKENIZER(text, split_special_tokens=True)["input_ids"]))
    assert "".join(pieces) == text.strip() == decoder.text
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


def test_streaming_with_a_real_sentencepiece_tokenizer(chat_tokenizers):
    text = "Bonjour 🌙, naïve “quotes” 你好 don 't  two  spaces .\nnew line 👩‍👩‍👧"
    for tokenizer in chat_tokenizers.values():
        decoder = StreamDecoder(tokenizer)
        assert "".join(decoder.pieces(tokenizer(text, add_special_tokens=False)["input_ids"])) == text


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost_behind_a_byte_that_makes_no_character(chat_tokenizers, data):
    """Byte fallback turns a whole run of bytes into U+FFFD when one of them is wrong, those already shown too."""
    tokenizer = chat_tokenizers["sentencepiece"]
    moon = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "🌙".encode()]
    words = [tokenizer(f"word {word}", add_special_tokens=False)["input_ids"][-1] for word in ("fine", "and", "you")]
    parts = data.draw(st.lists(st.sampled_from([moon, moon[:1], moon[:2], moon[2:], *([word] for word in words)])))
    ids = [number for part in parts for number in part]
    decoder = StreamDecoder(tokenizer)
    streamed = "".join(decoder.pieces(ids))
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert letters(streamed) == letters(whole) and streamed == decoder.text
    assert "\ufffd" in whole or streamed == whole.strip()


def letters(text: str) -> str:
    return "".join(char for char in text if char.isascii() and char.isalpha())


@given(
    turns=st.lists(st.integers(1, 300), max_size=30),
    newest=st.integers(1, 1200),
    dropped=st.integers(0, 5),
    fixed=st.integers(1, 100),
)
@settings(max_examples=300, deadline=None)
def test_the_window_never_overflows_and_keeps_whole_turns(turns, newest, dropped, fixed):
    window = Window(trained=512, limit=1024, max_new_tokens=100)
    dropped = min(dropped, len(turns))
    if fixed + newest > window.room:
        with pytest.raises(MessageTooLongError) as error:
            window.plan(Sizes(fixed, turns, newest), dropped)
        assert error.value.room == window.room - fixed and error.value.tokens == newest
        return
    plan = window.plan(Sizes(fixed, turns, newest), dropped)
    used = fixed + sum(turns[plan.dropped :]) + newest
    assert plan.dropped >= dropped
    assert used + window.max_new_tokens <= window.limit
    if plan.dropped > dropped:  # only when it had to, and then enough for many turns
        assert fixed + sum(turns[dropped:]) + newest > window.room
        assert fixed + sum(turns[plan.dropped :]) <= max(KEPT * window.room, fixed)
    assert plan.extended == (plan.dropped > 0 or used + window.max_new_tokens > window.trained)


def test_stop_ends_the_reading_of_a_long_prompt():
    session = ChatSession(random_model(TOKENIZER, context=4096), TOKENIZER, read_ahead=False, **GREEDY)
    stream = session.reply("x" * 3000)
    session.stop()
    assert list(stream) == []
    assert session.measured.ended == "stopped" and session.measured.read_tokens < 3000
    assert [m["role"] for m in session.messages] == ["user", "assistant"]


def test_stop_from_another_thread():
    session = ChatSession(ScriptedModel(TOKENIZER, ["abc " * 100], seconds=0.01), TOKENIZER, max_new_tokens=400)
    timer = threading.Timer(0.3, session.stop)
    timer.start()
    reply = "".join(session.reply("go on"))
    assert 3 < len(reply) < 200
    assert session.messages[-1] == {"role": "assistant", "content": reply.strip()}


def test_settings_out_of_range_are_refused():
    for wrong in ({"temperature": 0}, {"top_p": 1.5}, {"max_new_tokens": 0}, {"max_new_tokens": 4096}):
        with pytest.raises(UserError):
            ChatSession(MODEL, TOKENIZER, **wrong)
    with pytest.raises(UserError, match="dynamic, yarn, linear, none"):
        ChatSession(MODEL, TOKENIZER, context_extension="ntk")
