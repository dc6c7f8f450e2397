"""What a model reads of a conversation and where its replies end: in ChatML, or in a chat template of its own."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from nbutils.core.chatml import CHATML, IM_END, Conversation, encode
from nbutils.core.errors import UserError
from nbutils.core.vocabulary import special_strings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUT, REPLY = "\ue0f1", "\ue0f2"
"""Stand in rendered text where a special token that a message spells is cut in two, and for a reply."""

PROBE = [{"role": role, "content": role[::-1]} for role in ("system", "user", "assistant", "user")]


def has_own_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's chat template writes conversations otherwise than ChatML."""
    if not tokenizer.chat_template:
        return False
    try:
        return bool(tokenizer.apply_chat_template(PROBE, tokenize=False) != CHATML.render(PROBE))
    except (TemplateError, TypeError):  # it takes no system message, for example
        return True


class ChatMLTemplate:
    """ChatML, in which the ids of a conversation are its messages' in a row (see `nbutils.core.chatml`)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        # A reply in the making leaves an entry for every length it had.
        self._ids_of = lru_cache(maxsize=2000)(
            lambda role, text: encode(tokenizer, [{"role": role, "content": text}]).input_ids
        )
        self._header = encode(tokenizer, [], add_generation_prompt=True).input_ids
        self.ends = {tokenizer.convert_tokens_to_ids(IM_END)}

    def ids(self, messages: Conversation, *, prompt: bool) -> list[int]:
        """Token ids of a conversation."""
        ids = [i for message in messages for i in self._ids_of(message["role"], message["content"])]
        return ids + self._header if prompt else ids


class OwnTemplate:
    """A tokenizer's own chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._specials = special_strings(tokenizer)
        self._ids = lru_cache(maxsize=2000)(self._encoded)
        said = self._rendered([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": REPLY}])
        self.ends = self._specials.keys() & self._plain(said.partition(REPLY)[2]) | {tokenizer.eos_token_id}
        """What ends a reply: eos, and the control tokens that the template writes behind one."""

    def ids(self, messages: Conversation, *, prompt: bool) -> list[int]:
        """Token ids of a conversation. UserError where the template refuses it."""
        return self._ids(tuple((m["role"], m["content"]) for m in messages), prompt) if messages else []

    def _encoded(self, messages: tuple[tuple[str, str], ...], prompt: bool) -> list[int]:
        marked = [{"role": role, "content": self._marked(text.strip())} for role, text in messages]
        text = self._rendered(marked, add_generation_prompt=prompt)
        if prompt and text == self._rendered(marked):  # a template that knows of no prompt: what precedes a reply
            text = self._rendered([*marked, {"role": "assistant", "content": REPLY}]).partition(REPLY)[0]
        return [i for part in text.split(CUT) for i in self._plain(part)]

    def _marked(self, text: str) -> str:
        for special in self._specials.values():
            text = text.replace(special, special[:1] + CUT + special[1:])
        return text

    def _rendered(self, messages: Conversation, *, add_generation_prompt: bool = False) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except (TemplateError, TypeError) as error:
            raise UserError(f"The model's chat template refuses this conversation: {error}.") from error

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
