"""`encode_within` against `encode`, on two real tokenizers and one of our own."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbutils.core import fitting
from nbutils.core.bounds import bound_of
from nbutils.core.chatml import IM_END, IM_START, encode
from nbutils.core.fitting import characters_per_token, encode_within, reads_in_one_piece

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


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts, count=st.integers(1, 400))
@many
def test_no_text_has_fewer_tokens_than_its_length_tells(chat_tokenizers, kind, text, count):
    tokenizer = chat_tokenizers[kind]
    empty = [{"role": "user", "content": ""}]
    whole = len(encode(tokenizer, [{"role": "user", "content": text * count}])) - len(encode(tokenizer, empty))
    assert bound_of(tokenizer).fewest_tokens((text * count).strip()) - 1 <= whole


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_pieces_of_the_vocabulary_keep_the_bound(chat_tokenizers, kind):
    tokenizer = chat_tokenizers[kind]
    bound = bound_of(tokenizer)
    assert 10 < bound.bytes_per_token < 200
    for piece in sorted(tokenizer.get_vocab(), key=len)[-40:]:
        text = f"x{tokenizer.convert_tokens_to_string([piece]) * 300}x"
        assert 0 < bound.fewest_tokens(text) <= len(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_that_cannot_fit_is_never_read(chat_tokenizers, kind, monkeypatch):
    tokenizer = chat_tokenizers[kind]
    most = bound_of(tokenizer).bytes_per_token
    huge = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "word " * int(most * 60)}]
    small = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    given = []
    monkeypatch.setattr(fitting, "_read", lambda *a, read=fitting._read: given.extend(a[2]) or read(*a))
    found, fits = encode_within(tokenizer, [huge, small], 256)
    assert given == [small]
    assert (found.encoding, found.exact, found.supervised) == (None, False, None)
    assert 256 < found.tokens <= len(encode(tokenizer, huge))
    assert fits.encoding == encode(tokenizer, small)


def test_a_tokenizer_that_may_drop_text_has_no_bound():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    bound = bound_of(PreTrainedTokenizerFast(tokenizer_object=words))
    assert bound.fewest_tokens("a" * 100_000) == 0
