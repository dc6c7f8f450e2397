"""Token ids of many texts that share long beginnings: each piece between control tokens is read once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHECKED = 16
"""Texts, the longest ones, on which reading by pieces is compared with reading whole."""


def encode_all(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: Any) -> list[list[int]]:
    """The ids that `tokenizer(texts, **options)` gives.

    The tokenizers library splits a text at special tokens before it does anything else, and a conversation's turns
    come back in every later context; so pieces are read once and put together, if that is right for this tokenizer:
    one that treats the beginning of a text differently, or puts a token in front, gets whole texts.
    """
    splitter = _splitter(tokenizer)
    if splitter is None or not texts:
        return _whole(tokenizer, texts, options)
    pieces = {text: [piece for piece in splitter.split(text) if piece] for text in texts}
    unique = list(dict.fromkeys(piece for split in pieces.values() for piece in split))
    if sum(map(len, unique)) * 2 > sum(map(len, texts)):
        return _whole(tokenizer, texts, options)  # little comes back: nothing to be gained
    known = dict(zip(unique, _whole(tokenizer, unique, {"add_special_tokens": False}), strict=True))
    joined = {text: [i for piece in split for i in known[piece]] for text, split in pieces.items()}
    checked = sorted(texts, key=len)[-CHECKED:]
    if [joined[text] for text in checked] != _whole(tokenizer, checked, options):
        return _whole(tokenizer, texts, options)
    return [joined[text] for text in texts]


def _whole(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], options: dict[str, Any]) -> list[list[int]]:
    if not texts:
        return []
    rows: list[list[int]] = tokenizer(list(texts), return_attention_mask=False, verbose=False, **options)["input_ids"]
    return rows


def _splitter(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """What splits a text at special tokens; None where there are none, or where one takes white space with it."""
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not tokenizer.is_fast or not added or any(t.lstrip or t.rstrip or t.single_word or t.normalized for t in added):
        return None
    longest_first = sorted((re.escape(token.content) for token in added), key=len, reverse=True)
    return re.compile(f"({'|'.join(longest_first)})")
