"""What a tokenizer's vocabulary can write: ids of plain text, its special tokens, and the characters that it loses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from nbutils.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE = "".join(map(chr, range(256))) + "\u0301東🙂"
"""A tokenizer that drops a character without a word drops one of these; others are not asked at every text."""
_UNHEARD_OF = "\U000f0000", "\U000f0001"


class OutsideVocabularyError(UserError):
    """A text holds characters that no piece of the tokenizer's vocabulary stands for."""

    def __init__(self, characters: Sequence[str], text: str) -> None:
        super().__init__(
            f"The model's vocabulary has no piece for {' '.join(map(repr, characters[:5]))} in the text "
            f"{text[:60]!r}: leave such characters out, or take a model whose tokenizer falls back to bytes."
        )


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Ids of texts in which special tokens are read as ordinary text."""
    if not texts:
        return []
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        bad = error.object[:60]
        raise UserError(f"The text {bad!r} holds half a surrogate pair, which is no valid Unicode.") from error
    return tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]


def special_strings(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Every special token of the tokenizer, id → text: what a message's text must never become."""
    return {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def unwritable(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The special tokens, id → text, and the one for what is unknown, which need not be marked as special."""
    try:
        one, other = ([t.id for t in tokenizer.backend_tokenizer.model.tokenize(c)] for c in _UNHEARD_OF)
    except Exception:  # it has no such token, and says so
        one, other = [], []
    return special_strings(tokenizer) | {i: str(tokenizer.convert_ids_to_tokens(i)) for i in one if one == other}


def unknown(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The characters of a text that are unknown by themselves."""
    characters, ids = list(dict.fromkeys(text)), unwritable(tokenizer).keys()
    return [c for c, row in zip(characters, plain_ids(tokenizer, characters), strict=True) if not ids.isdisjoint(row)]


def lost(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The characters of a text, white space aside, that leave no token at all."""
    if not (may_lose := _losing(tokenizer)) or not may_lose.search(text):
        return []
    return [character for character in dict.fromkeys(text) if _is_dropped(tokenizer, character)]


def readable(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text without what would be lost: what a model writes, it must be able to read again."""
    gone = lost(tokenizer, text)
    return "".join([character for character in text if character not in gone])


@lru_cache(maxsize=64)
def _losing(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Finds texts that may lose characters; None where the tokenizer drops none."""
    gone = [character for character in SAMPLE if _is_dropped(tokenizer, character)]
    return re.compile(f"[{re.escape(''.join(gone))}\u0100-\U0010ffff]") if gone else None


@lru_cache(maxsize=1 << 16)
def _is_dropped(tokenizer: PreTrainedTokenizerBase, character: str) -> bool:
    """Whether two of them read as one does, and no visible character is unknown."""
    if character.isspace():
        return False
    one, two = plain_ids(tokenizer, [f"a{character * n}a" for n in (1, 2)])
    return one == two and unwritable(tokenizer).keys().isdisjoint(one)
