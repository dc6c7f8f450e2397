"""Reading by pieces gives the ids of reading whole, for real tokenizers, or is not used."""

from __future__ import annotations

import pytest
from lm_eval.models.huggingface import HFLM

from nbutils.core.chatml import IM_END, IM_START
from nbutils.core.run.models import tiny_model
from nbutils.evaluate.shared_prefix import SharedPrefixLM
from tests.conftest import sentencepiece_tokenizer

TURNS = [
    "Hello there",
    " two  spaces ",
    "naïve 🙂 café\n\nnew line",
    "Ünïcode ▁ sign",
    "",
    "3.14 and 10,000",
    "</s> no",
]


def conversations() -> list[str]:
    """Contexts of one long conversation, each the beginning of the next, as a task asks for them."""
    texts, text = [], ""
    for number in range(40):
        text += f"{IM_START}{'user' if number % 2 == 0 else 'assistant'}\n{TURNS[number % len(TURNS)]}{IM_END}\n"
        texts += [text, text.rstrip(), text + "open end"]
    return texts


def reader(tokenizer) -> SharedPrefixLM:
    return SharedPrefixLM(tiny_model(tokenizer, 64, 0), tokenizer=tokenizer)


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
def test_pieces_give_the_ids_of_the_whole(chat_tokenizers, name):
    lm = reader(chat_tokenizers[name])
    for text in conversations():
        assert lm.tok_encode(text) == lm.tokenizer.encode(text)
        assert lm.tok_encode(text, add_special_tokens=False) == lm.tokenizer.encode(text, add_special_tokens=False)


def test_each_piece_is_read_once(chat_tokenizers, monkeypatch):
    read: list[str] = []
    whole = HFLM.tok_encode
    lm = reader(chat_tokenizers["byte_level"])
    monkeypatch.setattr(HFLM, "tok_encode", lambda lm, text, **how: (read.append(text), whole(lm, text, **how))[1])
    texts = conversations()
    for text in texts:
        lm.tok_encode(text)
    assert sum(map(len, read)) < sum(map(len, texts)) / 10


def test_a_tokenizer_that_puts_bos_in_front_reads_whole():
    tokenizer = sentencepiece_tokenizer()
    tokenizer.add_bos_token = True
    lm = reader(tokenizer)
    assert [lm.tok_encode(text) for text in conversations()] == [tokenizer.encode(text) for text in conversations()]
