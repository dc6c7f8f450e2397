"""`encode_within` against `encode`, on two real tokenizers and one of our own."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbutils.core.chatml import IM_END, IM_START, encode
from nbutils.core.encode_within import characters_per_token, encode_within, reads_in_one_piece

KINDS = ["byte_level", "sentencepiece"]
SPECIALS = [IM_END, IM_START, "<s>", "</s>", "<|endoftext|>", "<|im_start|>assistant\n"]

texts = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
        st.sampled_from([*SPECIALS, " \t\n", "hello there", "x" * 300, "how are you? " * 20]),
    ),
    max_size=4,
).map("".join)
message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts})
conversations = st.lists(st.lists(message, min_size=1, max_size=8), min_size=1, max_size=5)
many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("kind", KINDS)
@given(rows=conversations, limit=st.integers(16, 200))
@many
def test_what_fits_is_encoded_as_ever_and_what_does_not_is_measured_from_below(chat_tokenizers, kind, rows, limit):
    tokenizer = chat_tokenizers[kind]
    for messages, found in zip(rows, encode_within(tokenizer, rows, limit), strict=True):
        whole = encode(tokenizer, messages)
        if len(whole) <= limit:
            assert found.encoding == whole
            assert (found.tokens, found.exact) == (len(whole), True)
        else:
            assert found.encoding is None
            assert limit < found.tokens <= len(whole)
        if found.exact:
            assert (found.tokens, found.supervised) == (len(whole), sum(whole.supervised))
        else:
            assert found.supervised is None


@pytest.mark.parametrize("kind", KINDS)
def test_both_real_tokenizers_take_the_fast_way(chat_tokenizers, kind):
    assert reads_in_one_piece(chat_tokenizers[kind])
    assert 2 < characters_per_token(chat_tokenizers[kind]) < 7


@pytest.mark.parametrize("kind", KINDS)
def test_reading_stops_where_it_cannot_fit_and_does_not_depend_on_neighbours(chat_tokenizers, kind):
    tokenizer = chat_tokenizers[kind]
    turn = "I went to the market and bought apples. " * 5
    long = [{"role": ("user", "assistant")[i % 2], "content": turn} for i in range(400)]
    short = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    alone = encode_within(tokenizer, [long], 512)[0]
    among = encode_within(tokenizer, [short, long, short], 512)[1]
    assert alone == among
    assert not alone.exact
    assert 512 < alone.tokens < len(encode(tokenizer, long)) / 2


def test_many_empty_turns_are_too_long_without_reading_any(chat_tokenizers):
    rows = [[{"role": ("user", "assistant")[i % 2], "content": ""} for i in range(100)]]
    found = encode_within(chat_tokenizers["byte_level"], rows, 50)[0]
    assert (found.encoding, found.exact) == (None, False)
    assert found.tokens == len(encode(chat_tokenizers["byte_level"], rows[0]))


def test_nothing_in_nothing_out(chat_tokenizers):
    assert encode_within(chat_tokenizers["byte_level"], [], 50) == []
    assert encode_within(chat_tokenizers["byte_level"], [[]], 50)[0].tokens == 0


def test_what_stands_behind_a_message_that_is_too_long_is_not_read(chat_tokenizers):
    tokenizer = chat_tokenizers["byte_level"]
    huge = {"role": "user", "content": "word " * 3_000}
    found = encode_within(tokenizer, [[huge, *[{"role": "assistant", "content": "unread " * 50}] * 9]], 256)[0]
    assert (found.encoding, found.exact, found.supervised) == (None, False, None)
    assert 3_000 <= found.tokens < len(encode(tokenizer, [huge])) + 9 * 50
