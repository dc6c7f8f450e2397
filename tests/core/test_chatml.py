"""ChatML, whole and within a limit, on two real tokenizers and small ones of our own."""

import re
from collections.abc import Iterable
from functools import cache, partial
from itertools import groupby
from operator import itemgetter

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nbutils.core.chatml import IM_END, IM_START, PAD, add_chatml, encode, encode_batch
from nbutils.core.encode_within import Measured, characters_per_token, encode_within, reads_in_one_piece
from nbutils.core.errors import UserError
from nbutils.core.vocabulary import OutsideVocabularyError, special_strings
from tests.conftest import byte_level_tokenizer, sentencepiece_tokenizer

each_kind = pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
SPECIALS = [IM_START, IM_END, PAD, "<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_start|>assistant\n", "<file_sep>"]

# U+2581 is SentencePiece's own mark for a space: it cannot be told from one after decoding.
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40)
hostile = st.lists(st.one_of(plain, st.sampled_from([*SPECIALS, " \t\n", "how are you? " * 20])), max_size=4).map(
    "".join
)
roles = st.sampled_from(["system", "user", "assistant"])
messages = st.lists(st.fixed_dictionaries({"role": roles, "content": hostile}), min_size=1, max_size=6)
some = settings(max_examples=60, deadline=None)


def turns(*texts: str) -> list[dict[str, str]]:
    """A conversation that the user begins."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@cache
def covers(tokenizer, character):
    """Whether the vocabulary can write the character at all (SmolLM2's lacks some control bytes)."""
    ids = tokenizer("a" + character, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False) == "a" + character


def supervised_texts(tokenizer, encoding):
    """Each run of supervised tokens, as text."""
    spans = groupby(zip(encoding.input_ids, encoding.supervised, strict=True), itemgetter(1))
    learnt = [[token for token, _ in span] for supervised, span in spans if supervised]
    return [tokenizer.decode(span, clean_up_tokenization_spaces=False) for span in learnt]


@each_kind
@given(conversation=messages)
@example(conversation=[{"role": "assistant", "content": "</s>"}])
@example(conversation=[{"role": "user", "content": "\u0301e"}, {"role": "assistant", "content": "\n \x1c x\u200b "}])
@some
def test_prefix_mask_forgery_and_the_saved_template(chat_tokenizers, kind, conversation):
    tokenizer = chat_tokenizers[kind]
    assume(all(covers(tokenizer, character) for m in conversation for character in m["content"].strip()))
    encoding, asked = (encode(tokenizer, conversation, add_generation_prompt=prompt) for prompt in (False, True))
    for k, message in enumerate(conversation):
        if message["role"] == "assistant":
            prefix = encode(tokenizer, conversation[:k], add_generation_prompt=True).input_ids
            assert encoding.input_ids[: len(prefix)] == prefix
    # SentencePiece decodes a text alone without the blank that a first "▁" stands for; texts are stripped, so equal.
    learnt = [m["content"].strip() + IM_END for m in conversation if m["role"] == "assistant"]
    assert supervised_texts(tokenizer, encoding) == learnt and not encoding.apart
    start, end = tokenizer.convert_tokens_to_ids([IM_START, IM_END])
    control = [i for i in asked.input_ids if i in special_strings(tokenizer)]
    assert control == [start, end] * len(conversation) + [start]
    if not any(special in m["content"] for m in conversation for special in SPECIALS):
        for found, prompt in ((encoding, False), (asked, True)):
            stock = tokenizer.apply_chat_template(conversation, return_dict=False, add_generation_prompt=prompt)
            assert found.input_ids == stock


@each_kind
@given(rows=st.lists(messages, min_size=1, max_size=4), limit=st.integers(16, 200))
@some
def test_what_fits_is_encoded_as_ever_and_what_does_not_is_measured_from_below(chat_tokenizers, kind, rows, limit):
    tokenizer = chat_tokenizers[kind]
    assume(all(covers(tokenizer, c) for conversation in rows for m in conversation for c in m["content"].strip()))
    wholes = encode_batch(tokenizer, rows)
    assert wholes == [encode(tokenizer, conversation) for conversation in rows]
    for whole, found in zip(wholes, encode_within(tokenizer, rows, limit), strict=True):
        if len(whole) <= limit:
            assert found.encoding == whole and found.exact
        else:
            assert found.encoding is None and limit < found.tokens <= len(whole)
        known = (len(whole), sum(whole.supervised)) if found.exact else (found.tokens, None)
        assert (found.tokens, found.supervised) == known


@each_kind
def test_reading_stops_where_it_cannot_fit_and_does_not_depend_on_neighbours(chat_tokenizers, kind):
    tokenizer = chat_tokenizers[kind]
    assert reads_in_one_piece(tokenizer) and 2 < characters_per_token(tokenizer) < 7
    short, long = turns("Hi", "Hello"), turns(*["I went to the market and bought apples. " * 5] * 400)
    alone, among = encode_within(tokenizer, [long], 512)[0], encode_within(tokenizer, [short, long, short], 512)[1]
    assert alone == among and not alone.exact
    assert 512 < alone.tokens < len(encode(tokenizer, long)) / 2


def test_empty_turns_and_nothing_at_all(chat_tokenizers):
    tokenizer, empty = chat_tokenizers["byte_level"], turns(*[""] * 100)
    too_long = Measured(None, len(encode(tokenizer, empty)), None)  # without reading any
    assert encode_within(tokenizer, [empty], 50) == [too_long]
    assert encode_within(tokenizer, [], 50) == encode_batch(tokenizer, []) == []


def llama(rows: int, **options) -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, **sizes | {"bos_token_id": 1} | options))


def test_the_reference_base_gets_the_reference_ids_and_parameters():
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
    with torch.device("meta"):
        model = llama(32000, **sizes, max_position_embeddings=1024, tie_word_embeddings=False)
    tokenizer = add_chatml(sentencepiece_tokenizer(), model)
    assert tokenizer.convert_tokens_to_ids([IM_START, IM_END, PAD]) == [32000, 32001, 32002]
    assert model.num_parameters() == 134_110_464  # exact: no rows to fill a multiple


SINGLE = ["▁", *map(chr, range(33, 127)), "\n"]


def raw_unigram(special: list[str], pieces: Iterable[str], single=SINGLE, bytes_too=True) -> Tokenizer:
    """Single characters as pieces, and `pieces`, which win wherever they fit; the first special one is the unknown."""
    vocab = [*((s, 0.0) for s in special), *((f"<0x{b:02X}>", -20.0) for b in range(256) if bytes_too)]
    raw = Tokenizer(models.Unigram([*vocab, *((p, -9.0) for p in single), *((p, -1.0) for p in pieces)], 0, bytes_too))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    raw.decoder = decoders.Sequence([*[decoders.ByteFallback()] * bytes_too, decoders.Metaspace()])
    return raw


def unigram(*pieces, single=SINGLE, normalizer=None, bytes_too=True, unknown="<unk>", chatml=True):
    """The same as a tokenizer of transformers, with ChatML."""
    raw = raw_unigram(["<unk>", "</s>"], pieces, single, bytes_too)
    if normalizer:
        raw.normalizer = normalizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token=unknown)
    return add_chatml(tokenizer) if chatml else tokenizer


without_chatml = partial(unigram, chatml=False)


def with_holes():
    """One token per byte, and ids that no piece has."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)} | {"z": 600}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


@pytest.mark.parametrize(
    "make,spare,tie",
    [(without_chatml, 0, False), (without_chatml, 0, True), (without_chatml, 64, False), (with_holes, 0, False)],
)
def test_new_rows_are_the_mean_of_those_in_use_and_spare_ones_are_cut(make, spare, tie):
    tokenizer = make()
    old = sorted(tokenizer.get_vocab().values())
    model = llama(old[-1] + 1 + spare, tie_word_embeddings=tie)
    layers = model.get_input_embeddings, model.get_output_embeddings
    before = [layer().weight.clone() for layer in layers]
    add_chatml(tokenizer, model)
    _, end, pad = new = tokenizer.convert_tokens_to_ids([IM_START, IM_END, PAD])
    for then, layer in zip(before, layers, strict=True):
        weight = layer().weight
        assert torch.equal(weight[old], then[old]) and len(weight) == max(*old, *new) + 1
        assert torch.allclose(weight[new], then[old].mean(dim=0).expand(3, -1), atol=1e-7)
    for config in (model.config, model.generation_config, tokenizer):
        assert (config.eos_token_id, config.pad_token_id) == (end, pad)


def test_tokens_that_are_there_keep_their_ids(smollm2_tokenizer_folder):
    tokenizer = byte_level_tokenizer(smollm2_tokenizer_folder)
    before = tokenizer.get_vocab()
    assert {IM_START, IM_END} < before.keys()
    add_chatml(add_chatml(tokenizer))  # a second call changes nothing
    assert tokenizer.get_vocab() == before | {PAD: len(before)}


def test_errors_are_sentences(chat_tokenizers):
    with pytest.raises(UserError, match="add_chatml"):
        encode(without_chatml(), turns("Hi"))
    with pytest.raises(UserError, match="surrogate"):
        encode(chat_tokenizers["byte_level"], turns("a\ud800"))


BLANKS = normalizers.Sequence([normalizers.Nmt(), normalizers.Replace(Regex(" {2,}"), " ")])


@pytest.mark.parametrize(
    "pieces,normalizer,one_piece",
    [
        (["▁user", "▁Hello", "▁Zebra"], BLANKS, True),  # newlines become blanks
        (["▁user", "\nHello", "\nZebra"], None, True),  # pieces that begin with a newline, of words not in the probe
        (["▁user", "\nHello", "\nZebra", "\nWhat"], None, False),
    ],
)
def test_no_text_is_lost_where_a_piece_spans_header_and_text(pieces, normalizer, one_piece):
    tokenizer = unigram(*pieces, normalizer=normalizer)
    texts = ["Hello there", "Zebra <s>", "fine", "ok"]
    encoding = encode(tokenizer, turns(*texts))
    decoded = tokenizer.decode(encoding.input_ids, clean_up_tokenization_spaces=False).split(IM_END)
    assert [re.split("user|assistant", part)[-1].strip() for part in decoded[:4]] == texts
    assert encoding.apart == 2 and reads_in_one_piece(tokenizer) == one_piece
    assert encode_within(tokenizer, [turns(*texts)], 500)[0].encoding == encoding


def without_unknown():
    """BPE with neither bytes nor an unknown token: what it lacks goes without a word."""
    raw = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*SINGLE, " "])}, []))
    return add_chatml(PreTrainedTokenizerFast(tokenizer_object=raw))


@pytest.mark.parametrize(
    "tokenizer,text,named",
    [
        (unigram(bytes_too=False), "a 🙂 東 🙂", "'🙂' '東'"),
        (unigram(bytes_too=False, unknown=None), "東 here", "'東'"),  # its token is not marked as special
        (unigram(bytes_too=False, single=SINGLE[:-1]), "東 here", "'東'"),  # the header ends in the unknown, too
        (unigram(bytes_too=False, single=SINGLE[:-1]), "a\nb 東", r"'\n' '東'"),
        (unigram(normalizer=BLANKS), "here\x01東", r"'\x01'"),  # lost by the normaliser
        (without_unknown(), "here 東", "'東'"),
    ],
    ids=["unknown", "not special", "behind an unknown newline", "unknown newline", "normalised away", "dropped"],
)
def test_a_character_outside_the_vocabulary_is_named_and_costs_its_own_text_alone(tokenizer, text, named):
    talk = turns("Hi there <unk>", "Good")
    assert encode_within(tokenizer, [talk], 100)[0].encoding == encode(tokenizer, talk)
    for read in (encode, lambda tokenizer, messages: encode_within(tokenizer, [messages], 500)):
        with pytest.raises(OutsideVocabularyError, match=re.escape(f"no piece for {named} in the text {text!r}")):
            read(tokenizer, [*talk, *turns(text)])
