"""Text from token ids as they come: never half a character, never text that is taken back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"


class StreamDecoder:
    """Turns ids into pieces of text whose sum is the decoded whole, stripped at both ends.

    A tokenizer with byte fallback takes back a whole run of bytes where a later one makes no character of it. What is
    out stays then, and the ids behind it are decoded by themselves.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._before = ""
        """The text of ids that are not decoded any more."""
        self._ids: list[int] = []
        self._complete = 0
        """So many of the ids have all their text in `text`."""
        self.text = ""

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """What each id makes certain, often nothing: bytes of an unfinished character and trailing white space wait."""
        for token_id in ids:
            self._ids.append(token_id)
            yield self._advance(REPLACEMENT)
        yield self._advance("")

    def _advance(self, held_back: str) -> str:
        decoded = self._decoded()
        certain = decoded.rstrip(held_back).rstrip()
        if not certain.startswith(self.text):
            self._before, self._ids, self._complete = self.text, self._ids[self._complete :], 0
            decoded = self._decoded()
            certain = decoded.rstrip(held_back).rstrip()
        if certain == decoded:
            self._complete = len(self._ids)
        piece = certain[len(self.text) :]
        self.text += piece
        return piece

    def _decoded(self) -> str:
        # All ids each time: what a token decodes to depends on those before it. A reply is short; this takes 50 µs.
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return self._before + text if self._before else text.lstrip()
