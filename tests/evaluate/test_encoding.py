"""Reading by pieces gives the ids of reading whole, for real tokenizers, or is not used."""

from __future__ import annotations

import pytest

from nbutils.core.chatml import IM_END, IM_START
from nbutils.evaluate import shared_prefix
from nbutils.evaluate.shared_prefix import encode_all
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


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
def test_pieces_give_the_ids_of_the_whole(chat_tokenizers, name):
    tokenizer = chat_tokenizers[name]
    texts = conversations()
    assert encode_all(tokenizer, texts) == [tokenizer.encode(text) for text in texts]
    bare = encode_all(tokenizer, texts, add_special_tokens=False)
    assert bare == [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def test_each_piece_is_read_once(chat_tokenizers, monkeypatch):
    read: list[int] = []
    whole = shared_prefix._whole
    monkeypatch.setattr(
        shared_prefix, "_whole", lambda t, texts, o: (read.append(sum(map(len, texts))), whole(t, texts, o))[1]
    )
    texts = conversations()
    encode_all(chat_tokenizers["byte_level"], texts)
    longest = sum(sorted(map(len, texts))[-shared_prefix.CHECKED :])
    assert sum(read) < longest + 1000 < sum(map(len, texts)) / 2


def test_a_tokenizer_without_special_tokens_or_with_bos_reads_whole():
    tokenizer = sentencepiece_tokenizer()
    tokenizer.add_bos_token = True
    texts = conversations()
    assert encode_all(tokenizer, texts) == [tokenizer.encode(text) for text in texts]
    assert encode_all(tokenizer, []) == []
