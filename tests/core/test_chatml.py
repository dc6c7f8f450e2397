"""ChatML on two real tokenizers: prefix, mask and forgery properties, equality with the saved template."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nbutils.core.chatml import (
    IM_END,
    IM_START,
    PAD,
    OutsideVocabularyError,
    add_chatml,
    encode,
    encode_batch,
    special_strings,
)
from nbutils.core.encode_within import encode_within, reads_in_one_piece
from nbutils.core.errors import UserError
from tests.conftest import byte_level_tokenizer, sentencepiece_tokenizer

KINDS = ["byte_level", "sentencepiece"]
SPECIALS = [IM_START, IM_END, PAD, "<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_start|>assistant\n", "<file_sep>"]

# U+2581 is SentencePiece's own mark for a space: it cannot be told from one after decoding.
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40)
hostile = st.lists(st.one_of(plain, st.sampled_from(SPECIALS)), max_size=4).map("".join)
roles = st.sampled_from(["system", "user", "assistant"])
messages = st.lists(st.fixed_dictionaries({"role": roles, "content": hostile}), min_size=1, max_size=6)
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@cache
def covers(tokenizer, character: str) -> bool:
    """Whether the vocabulary can write the character at all (SmolLM2's lacks some control bytes)."""
    ids = tokenizer("a" + character, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False) == "a" + character


def has_special(conversation) -> bool:
    return any(special in m["content"] for m in conversation for special in SPECIALS)


@pytest.mark.parametrize("kind", KINDS)
@given(conversation=messages)
@many
def test_prefix_property(chat_tokenizers, kind, conversation):
    tokenizer = chat_tokenizers[kind]
    whole = encode(tokenizer, conversation).input_ids
    for k, message in enumerate(conversation):
        if message["role"] == "assistant":
            prefix = encode(tokenizer, conversation[:k], add_generation_prompt=True).input_ids
            assert whole[: len(prefix)] == prefix


@pytest.mark.parametrize("kind", KINDS)
@given(conversation=messages)
@example(conversation=[{"role": "assistant", "content": "</s>"}])
@example(conversation=[{"role": "user", "content": "\u0301e"}, {"role": "assistant", "content": "\n \x1c x\u200b "}])
@many
def test_mask_property(chat_tokenizers, kind, conversation):
    tokenizer = chat_tokenizers[kind]
    assume(all(covers(tokenizer, character) for m in conversation for character in m["content"].strip()))
    encoding = encode(tokenizer, conversation)
    assert len(encoding.input_ids) == len(encoding.supervised) and not encoding.apart
    spans, span = [], []
    for token, supervised in zip(encoding.input_ids, encoding.supervised, strict=True):
        span = [*span, token] if supervised else span
        if span and (not supervised or token == tokenizer.eos_token_id):
            spans.append(tokenizer.decode(span, clean_up_tokenization_spaces=False))
            span = []
    # SentencePiece decodes a text alone without the blank that a first "▁" stands for; texts are stripped, so equal.
    assert spans == [m["content"].strip() + IM_END for m in conversation if m["role"] == "assistant"]


@pytest.mark.parametrize("kind", KINDS)
@given(conversation=messages)
@many
def test_no_forgery(chat_tokenizers, kind, conversation):
    tokenizer = chat_tokenizers[kind]
    ids = encode(tokenizer, conversation, add_generation_prompt=True).input_ids
    start, end = tokenizer.convert_tokens_to_ids([IM_START, IM_END])
    control = [i for i in ids if i in special_strings(tokenizer)]
    assert control == [start, end] * len(conversation) + [start]


@pytest.mark.parametrize("kind", KINDS)
@given(conversation=messages)
@many
def test_equals_the_saved_template_on_ordinary_text(chat_tokenizers, kind, conversation):
    tokenizer = chat_tokenizers[kind]
    for prompt in (False, True):
        if not has_special(conversation):
            stock = tokenizer.apply_chat_template(
                conversation, tokenize=True, return_dict=False, add_generation_prompt=prompt
            )
            assert encode(tokenizer, conversation, add_generation_prompt=prompt).input_ids == stock


@pytest.mark.parametrize("kind", KINDS)
def test_batch_equals_one_by_one(chat_tokenizers, kind):
    tokenizer = chat_tokenizers[kind]
    conversations = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"Reply {i} </s>"}] for i in range(5)
    ]
    assert encode_batch(tokenizer, conversations) == [encode(tokenizer, c) for c in conversations]
    assert encode_batch(tokenizer, []) == []


def test_the_reference_base_gets_the_reference_ids_and_parameters():
    tokenizer = add_chatml(sentencepiece_tokenizer())
    assert tokenizer.convert_tokens_to_ids([IM_START, IM_END, PAD]) == [32000, 32001, 32002]
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    add_chatml(sentencepiece_tokenizer(), model)
    assert sum(p.numel() for p in model.parameters()) == 134_110_464
    assert model.get_input_embeddings().weight.shape[0] == 32003  # exact, never padded to a multiple


def tiny(rows: int, tie: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tie,
            bos_token_id=1,
        )
    )


@pytest.mark.parametrize("tie", [False, True])
def test_new_rows_are_the_mean_of_the_old(tie):
    model = tiny(32000, tie)
    before = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
    tokenizer = add_chatml(sentencepiece_tokenizer(), model)
    after = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:32000], old)
        assert torch.allclose(new[32000:], old.mean(dim=0).expand(3, -1), atol=1e-7)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id == 32001
    assert model.config.pad_token_id == tokenizer.pad_token_id == 32002 != tokenizer.eos_token_id


def test_a_padded_base_is_cut_to_the_vocabulary_and_its_spare_rows_are_initialised():
    model = tiny(32064)
    old = model.get_input_embeddings().weight.clone()
    add_chatml(sentencepiece_tokenizer(), model)
    new = model.get_input_embeddings().weight
    assert new.shape[0] == 32003
    assert torch.allclose(new[32000:], old[:32000].mean(dim=0).expand(3, -1), atol=1e-7)


def test_tokens_that_are_there_keep_their_ids(smollm2_tokenizer_folder):
    tokenizer = byte_level_tokenizer(smollm2_tokenizer_folder)
    before = tokenizer.get_vocab()
    add_chatml(tokenizer)
    assert tokenizer.convert_tokens_to_ids([IM_START, IM_END]) == [before[IM_START], before[IM_END]] == [1, 2]
    assert tokenizer.convert_tokens_to_ids(PAD) == len(before)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(add_chatml(tokenizer)) == len(before) + 1  # a second call changes nothing


def test_a_saved_tokenizer_encodes_the_same(chat_tokenizers, tmp_path):
    conversation = [{"role": "user", "content": "Où est </s> la gare ?"}, {"role": "assistant", "content": "Là.\n\nOK"}]
    for kind, tokenizer in chat_tokenizers.items():
        tokenizer.save_pretrained(tmp_path / kind)
        again = AutoTokenizer.from_pretrained(tmp_path / kind)
        assert encode(again, conversation) == encode(tokenizer, conversation)
        assert (again.eos_token, again.pad_token) == (IM_END, PAD)


def test_errors_are_sentences(smollm2_tokenizer_folder, chat_tokenizers):
    with pytest.raises(UserError, match="add_chatml"):
        encode(sentencepiece_tokenizer(), [{"role": "user", "content": "Hi"}])
    with pytest.raises(UserError, match="surrogate"):
        encode(chat_tokenizers["byte_level"], [{"role": "user", "content": "a\ud800"}])


def unigram(*pieces: str, normalizer=None, bytes_too: bool = True):
    """ASCII and newline as single pieces, and `pieces`, which win wherever they fit."""
    single = ["▁", "\n", *map(chr, range(33, 127))]
    vocab = [("<unk>", 0.0), ("</s>", 0.0), *((f"<0x{b:02X}>", -20.0) for b in range(256) if bytes_too)]
    vocab += [(piece, -9.0) for piece in single] + [(piece, -1.0) for piece in pieces]
    raw = Tokenizer(models.Unigram(vocab, 0, bytes_too))
    if normalizer:
        raw.normalizer = normalizer
    raw.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    raw.decoder = decoders.Sequence([*[decoders.ByteFallback()] * bytes_too, decoders.Metaspace()])
    return add_chatml(PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>"))


BLANKS = normalizers.Sequence([normalizers.Nmt(), normalizers.Replace(Regex(" {2,}"), " ")])


@pytest.mark.parametrize(
    ("pieces", "normalizer", "one_piece"),
    [
        (["▁user", "▁Hello", "▁Zebra"], BLANKS, True),  # newlines become blanks
        (["▁user", "\nHello", "\nZebra"], None, True),  # pieces that begin with a newline, of words not in the probe
        (["▁user", "\nHello", "\nZebra", "\nWhat"], None, False),
    ],
)
def test_no_text_is_lost_where_a_piece_spans_header_and_text(pieces, normalizer, one_piece):
    tokenizer = unigram(*pieces, normalizer=normalizer)
    roles = ["user", "assistant"] * 2
    texts = ["Hello there", "Zebra <s>", "fine", "ok"]
    talk = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    encoding = encode(tokenizer, talk)
    decoded = tokenizer.decode(encoding.input_ids, clean_up_tokenization_spaces=False).split(IM_END)
    assert [part.split("user")[-1].split("assistant")[-1].strip() for part in decoded[:4]] == texts
    assert encoding.apart == 2 and reads_in_one_piece(tokenizer) == one_piece
    assert encode_within(tokenizer, [talk], 500)[0].encoding == encoding
    assert encoding.input_ids[: len(encode(tokenizer, talk[:2]))] == encode(tokenizer, talk[:2]).input_ids


def test_a_character_outside_the_vocabulary_is_named_and_costs_its_own_text_alone():
    tokenizer = unigram(bytes_too=False)
    talk = [{"role": "user", "content": "Hi <unk>"}, {"role": "assistant", "content": "Good"}]
    assert encode_within(tokenizer, [talk], 100)[0].encoding == encode(tokenizer, talk)
    with pytest.raises(OutsideVocabularyError, match="no piece for '🙂' '東' in the text 'a 🙂 東 🙂'"):
        encode(tokenizer, [*talk, {"role": "user", "content": "a 🙂 東 🙂"}])


def test_a_vocabulary_with_holes_keeps_its_ids():
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocabulary | {"z": 600}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    model = tiny(601)
    before = model.get_input_embeddings().weight.clone()
    tokenizer = add_chatml(PreTrainedTokenizerFast(tokenizer_object=raw), model)
    after, ids = model.get_input_embeddings().weight, encode(tokenizer, [{"role": "user", "content": "zz"}]).input_ids
    assert ids.count(600) == 2 and model(torch.tensor([ids])).logits.shape[-1] == model.config.vocab_size == 601
    used = sorted(raw.get_vocab(with_added_tokens=False).values())
    assert torch.equal(after[600], before[600])
    assert torch.allclose(after[tokenizer.eos_token_id], before[used].mean(dim=0), atol=1e-7)
