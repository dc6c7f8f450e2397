"""What comes of a reply: its text, piece by piece, and what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"

Count = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0, lt=2**63)]


class Measured(BaseModel):
    """What one reply cost: tokens read and written, and seconds since the message was sent.

    Seconds are those that the model worked on it: not those in which whoever reads it did something else.
    """

    model_config = ConfigDict(strict=True)

    read_tokens: Count = 0
    reused_tokens: Count = 0
    new_tokens: Count = 0
    seconds_to_first_token: Seconds | None = None
    seconds: Seconds = 0.0
    ended: Literal["end", "length", "stopped"] = "stopped"  # by `<|im_end|>`, by max_new_tokens, or by a person

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of writing behind the first token."""
        if self.new_tokens < 2 or self.seconds_to_first_token is None:
            return None
        return (self.new_tokens - 1) / max(self.seconds - self.seconds_to_first_token, 1e-9)

    @property
    def summary(self) -> str:
        """Tokens, speed, time to first token, and what ended the reply early, in words."""
        words = [f"{self.new_tokens} tokens"]
        if self.tokens_per_second is not None:
            words.append(f"{self.tokens_per_second:.1f} tokens/s")
        if self.seconds_to_first_token is not None:
            words.append(f"first after {self.seconds_to_first_token:.2f} s")
        if self.ended != "end":
            words.append({"stopped": "stopped", "length": "longest reply reached"}[self.ended])
        return " · ".join(words)


def trimmed(pieces: Iterable[str]) -> Iterator[str]:
    """Pieces of text, none of them empty, whose sum is that of the given ones, stripped at both ends."""
    text, shown = "", 0
    for more in pieces:
        text = (text + more) if text else more.lstrip()
        if piece := text.rstrip()[shown:]:
            shown += len(piece)
            yield piece


def streamed(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> Iterator[str]:
    """Turns ids into pieces of text as of `trimmed`, whose sum is the decoded whole.

    Bytes of an unfinished character wait. What a token decodes to depends on those before it:
    it is decoded together with those of the piece before. A tokenizer with byte fallback takes back a whole run of
    bytes where a later one makes no character of it; what is out stays then.
    """
    return trimmed(_decoded(tokenizer, ids))


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> Iterator[str]:
    read: list[int] = []
    start = end = 0
    for token in chain(ids, [None]):
        read += [] if token is None else [token]
        before, now = (
            tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for part in (read[start:end], read[start:])
        )
        if len(now) > len(before) and (token is None or not now.endswith(REPLACEMENT)):
            start, end = end, len(read)
            yield now[len(before) :]
