"""ChatML on two real tokenizers: prefix, mask and forgery properties, equality with the saved template."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from nbutils.core.chatml import IM_END, IM_START, PAD, add_chatml, encode, encode_batch, special_strings
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
    assert len(encoding.input_ids) == len(encoding.supervised)
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
