"""How many tokens a text has at least, told from its length: what cannot fit need not be read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMALIZERS = {"NFC": 16, "NFKC": 16, "NFD": 4, "NFKD": 4, "Lowercase": 4, "Prepend": 1, "ByteLevel": 1}
"""Bytes that become one at most: one character never takes more than 4, and composition joins up to 4 of them."""
PRE_TOKENIZERS = ("ByteLevel", "Metaspace", "Split", "Digits", "Punctuation", "UnicodeScripts")
"""Those that drop nothing (unless `behavior` says so)."""


@dataclass(frozen=True)
class Bound:
    """Bytes of UTF-8 that one token stands for at most, and bytes that the vocabulary lacks: those vanish."""

    bytes_per_token: float
    missing: bytes = b""

    def fewest_tokens(self, text: str) -> int:
        """A number of tokens that the text cannot have fewer than; 0 where nothing is known."""
        if math.isinf(self.bytes_per_token):
            return 0
        return math.ceil(len(text.encode(errors="ignore").translate(None, self.missing)) / self.bytes_per_token)


UNKNOWN = Bound(math.inf)


@lru_cache(maxsize=8)
def bound_of(tokenizer: PreTrainedTokenizerBase) -> Bound:
    """What is known of a fast tokenizer; UNKNOWN where it may drop text, or merge it without end.

    Byte-pair encoding that falls back to bytes, as most base models of today use it, gets every byte into some piece,
    so that its longest piece is a bound.
    """
    found = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = found["model"], found["added_tokens"]
    normalizers = list(_steps(found["normalizer"], "normalizers"))
    pre_tokenizers = list(_steps(found["pre_tokenizer"], "pretokenizers"))
    by_letter = any(step["type"] == "ByteLevel" for step in (*normalizers, *pre_tokenizers))
    missing = _missing(model["vocab"], by_letter) if model["type"] == "BPE" else b""
    shrinks = math.prod(map(_shrinks, normalizers))
    known = (
        model["type"] == "BPE"
        and (by_letter or model.get("byte_fallback", False))
        and (not missing or (by_letter and shrinks == 1))
        and not any(token["lstrip"] or token["rstrip"] for token in added)  # they swallow white space
        and all(s["type"] in PRE_TOKENIZERS and s.get("behavior") != "Removed" for s in pre_tokenizers)
    )
    if not known:
        return UNKNOWN
    pieces = max(len(piece) if by_letter else len(piece.encode()) for piece in model["vocab"])
    return Bound(shrinks * max([pieces, *(len(token["content"].encode()) for token in added)]), missing)


def _steps(part: Mapping[str, Any] | None, key: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, also of one that is a sequence of others."""
    if part is not None and part["type"] != "Sequence":
        yield part
    for step in (part or {}).get(key, ()):
        yield from _steps(step, key)


def _shrinks(normalizer: Mapping[str, Any]) -> float:
    """Bytes of which a normalizer makes one at most."""
    if normalizer["type"] == "Replace":
        old = normalizer["pattern"].get("String")
        shorter = old is None or len(old.encode()) > len(normalizer["content"].encode())
        return math.inf if shorter else 1
    return NORMALIZERS.get(normalizer["type"], math.inf)


def _missing(vocabulary: Mapping[str, int], by_letter: bool) -> bytes:
    """Bytes without a piece of their own: written as a letter each (`ByteLevel`), or as `<0x0A>`."""
    if by_letter:
        # The letters' order is that of the code points which stand for themselves, then of the rest (GPT-2's encoder).
        plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        rest = [byte for byte in range(256) if byte not in plain]
        letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    else:
        letters = {byte: f"<0x{byte:02X}>" for byte in range(256)}
    return bytes(byte for byte, letter in letters.items() if letter not in vocabulary)
