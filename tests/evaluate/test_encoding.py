"""Reading by pieces gives the ids of reading whole, for real tokenizers, or is not used."""

import pytest
from lm_eval.models.huggingface import HFLM

from nbutils.core.chatml import IM_END, IM_START
from nbutils.core.run.models import tiny_model
from nbutils.evaluate.shared_prefix import SharedPrefixLM
from tests.conftest import sentencepiece_tokenizer

TURNS = "Hello there", " two  spaces ", "naïve 🙂 café\n\nnew line", "Ünïcode ▁ sign", "", "3.14 and 10,000", "</s> no"


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "with BOS"])
def test_pieces_give_the_ids_of_the_whole_and_each_is_read_once(chat_tokenizers, monkeypatch, name):
    tokenizer = chat_tokenizers.get(name) or sentencepiece_tokenizer()
    if name == "with BOS":
        tokenizer.add_bos_token = True
    lm = SharedPrefixLM(tiny_model(tokenizer, 64, 0), tokenizer=tokenizer)
    read = []
    whole = HFLM.tok_encode
    monkeypatch.setattr(HFLM, "tok_encode", lambda lm, text, **how: (read.append(text), whole(lm, text, **how))[1])
    texts, text = [], ""
    for number in range(40):  # contexts of one long conversation, each the beginning of the next, as tasks ask for them
        text += f"{IM_START}{('user', 'assistant')[number % 2]}\n{TURNS[number % len(TURNS)]}{IM_END}\n"
        texts += [text, text.rstrip(), text + "open end"]
    assert [lm.tok_encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]
    if name == "byte_level":
        assert sum(map(len, read)) < sum(map(len, texts)) / 10
    if name == "with BOS":  # a detail that decides numbers: rolling windows score it once more
        assert lm.prefix_token_id == lm.tok_encode(text)[0] == tokenizer.bos_token_id
