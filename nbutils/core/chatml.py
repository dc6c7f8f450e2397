"""ChatML: the one function that turns messages into token ids and a mask of supervised tokens.

Filtering, training, evaluation and chat all call `encode`, or write text with `CHATML`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

from nbutils.core.errors import UserError
from nbutils.core.vocabulary import OutsideVocabularyError, lost, plain_ids, unknown, unwritable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IM_START, IM_END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
TEMPLATE = files("nbutils.core").joinpath("chatml.jinja").read_text(encoding="utf-8")

Message = Mapping[str, Any]
"""`role`, `content`, and `learn`: False for one that is context alone, which nothing is learnt from."""
Conversation = Sequence[Message]


_RENDERED = re.compile(rf"{re.escape(IM_START)}(\w+)\n(.*?)(?:{re.escape(IM_END)}\s*|\Z)", re.DOTALL)


class ChatTemplate:
    """How a conversation is written as text."""

    def open(self, role: str) -> str:
        """What is in front of a message's text."""
        return f"{IM_START}{role}\n"

    def parse(self, text: str) -> list[tuple[str, str]]:
        """Role and text of each message in what `render` wrote (the last may be open); empty for any other text."""
        whole = text.startswith(IM_START) and not _RENDERED.sub("", text).strip()
        return _RENDERED.findall(text) if whole else []

    def render(self, messages: Conversation) -> str:
        """A conversation's text; texts are stripped as `encode` strips them."""
        return "".join([f"{IM_START}{m['role']}\n{m['content'].strip()}{IM_END}\n" for m in messages])


CHATML = ChatTemplate()


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation, which of them the loss is computed on, and which are context alone (length T).

    `apart`: how many texts were read without their header, because a piece would have spanned both.
    """

    input_ids: list[int]
    supervised: list[bool]
    context: list[bool]
    apart: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Controls:
    """What is between the messages' texts, as ids, for one tokenizer.

    `plain`: each header as it is read together with a text. `forbidden`: the special tokens, id → text, and the one for
    what is unknown.
    """

    im_start: int
    im_end: int
    newline: list[int]
    headers: dict[str, list[int]]
    plain: dict[str, list[int]]
    forbidden: dict[int, str]


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: Conversation, *, add_generation_prompt: bool = False
) -> Encoded:
    """Token ids and supervised mask of a conversation.

    Supervised are the ids of each assistant's text that is to be learnt and the `<|im_end|>` behind it. White space at
    both ends of a text is dropped; special tokens spelled out in a text become ordinary text. Raises UserError for a
    tokenizer without the control tokens (see `add_chatml`) and for text that is no valid Unicode.
    """
    return encode_batch(tokenizer, [messages], add_generation_prompt=add_generation_prompt)[0]


def encode_batch(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    add_generation_prompt: bool = False,
) -> list[Encoded]:
    """`encode` for many conversations, with a single call of the tokenizer."""
    flat = [(message["role"], message["content"].strip()) for messages in conversations for message in messages]
    controls = controls_for(tokenizer, {role for role, _ in flat})
    texts = iter(_texts(tokenizer, controls, flat))
    prompt = [controls.im_start, *controls.headers["assistant"]] if add_generation_prompt else []
    found = []
    for messages in conversations:
        ids: list[int] = []
        apart = 0
        for message in messages:
            text, alone = next(texts)
            ids += [controls.im_start, *controls.headers[message["role"]], *text, controls.im_end, *controls.newline]
            apart += alone
        ids += prompt
        found.append(Encoded(ids, *masks(controls, messages, ids), apart))
    return found


def masks(controls: Controls, messages: Conversation, ids: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """Which ids of a conversation the loss is computed on, and which are context alone (see `Encoded`)."""
    supervised, context = [False] * len(ids), [False] * len(ids)
    end = 0
    for message in messages:
        begin = ids.index(controls.im_start, end)
        start = begin + 1 + len(controls.headers[message["role"]])
        end = ids.index(controls.im_end, start) + 1
        if message.get("learn") is False:
            stop = end + len(controls.newline)
            context[begin:stop] = [True] * (stop - begin)
        elif message["role"] == "assistant":
            supervised[start:end] = [True] * (end - start)
    return supervised, context


def add_chatml(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> PreTrainedTokenizerBase:
    """Adds the control tokens that are missing, sets eos, pad and template, and resizes the embedding to fit exactly.

    New rows of the input and output embedding start as the mean of the old ones (Hewitt 2021, "Initializing new word
    embeddings for pretrained language models"). Tokens that the tokenizer has already keep their ids; none takes the
    white space beside it any more, which would be lost.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"The tokenizer {type(tokenizer).__name__} has no fast version, which ChatML encoding needs; "
            "use a base model with a tokenizer.json."
        )
    old_ids = set(tokenizer.get_vocab().values())
    tokens = {"extra_special_tokens": [IM_START, IM_END], "eos_token": IM_END, "pad_token": PAD}
    tokenizer.add_special_tokens(tokens, replace_extra_special_tokens=False)
    for own in tokenizer.added_tokens_decoder.values():
        if own.lstrip or own.rstrip:
            tokenizer.add_tokens(AddedToken(own.content, normalized=False, special=own.special))
    tokenizer.chat_template = TEMPLATE
    tokenizer.padding_side = "right"
    if model is not None:
        _resize(model, tokenizer, old_ids)
    return tokenizer


def _resize(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, old_ids: set[int]) -> None:
    """Makes the embedding exactly as long as the tokenizer's ids ask; fresh rows get the mean of those in use before.

    A vocabulary may have holes: its highest id counts, not how many pieces there are.
    """
    import torch
    from transformers import GenerationConfig

    def weights() -> list[torch.Tensor]:
        return [layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())]

    rows_before = len(weights()[0])
    ids = set(tokenizer.get_vocab().values())
    used = sorted(i for i in old_ids if i < rows_before)
    means = [weight[used].float().mean(dim=0) for weight in weights()]  # each (D,)
    model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    fresh = sorted(ids - old_ids | {*range(rows_before, max(ids) + 1)})
    with torch.no_grad():
        for weight, mean in zip(weights(), means, strict=True):
            weight[fresh] = mean.to(weight.dtype)
    # A base's own generation_config.json would act on sample replies alone, and may be one that cannot be written.
    model.generation_config = GenerationConfig()
    for config in (model.config, model.generation_config):
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
        if getattr(config, "bos_token_id", None) is not None:
            config.bos_token_id = tokenizer.bos_token_id


def controls_for(tokenizer: PreTrainedTokenizerBase, roles: set[str]) -> Controls:
    """The ids between the texts of these roles and of a reply. UserError where the tokenizer lacks control tokens."""
    return _cached_controls(tokenizer, len(tokenizer), frozenset(roles | {"assistant"}))


@lru_cache(maxsize=64)
def _cached_controls(tokenizer: PreTrainedTokenizerBase, _length: int, roles: frozenset[str]) -> Controls:
    vocabulary = tokenizer.get_vocab()
    if not {IM_START, IM_END} <= vocabulary.keys():
        raise UserError(f"The tokenizer lacks {IM_START} or {IM_END}; call nbutils.core.chatml.add_chatml on it first.")

    def between(before: str, text: str, after: str) -> list[int]:
        ids = tokenizer(before + text + after, add_special_tokens=False)["input_ids"]
        return ids[1:-1]

    headers = {role: between(IM_START, f"{role}\n", IM_END) for role in sorted(roles)}
    plain = dict(zip(headers, plain_ids(tokenizer, [f"{role}\n" for role in headers]), strict=True))
    newline = between(IM_END, "\n", IM_START)
    return Controls(vocabulary[IM_START], vocabulary[IM_END], newline, headers, plain, unwritable(tokenizer))


def _texts(
    tokenizer: PreTrainedTokenizerBase, controls: Controls, flat: Sequence[tuple[str, str]]
) -> list[tuple[list[int], bool]]:
    """Ids of each text, given with its role, and whether it was read without its header.

    OutsideVocabularyError where something is lost.
    """
    found = []
    for (role, text), (ids, apart) in zip(flat, _behind_headers(tokenizer, controls, flat), strict=True):
        if not controls.forbidden.keys().isdisjoint(ids):  # merges can spell a special piece, such as "</s>"
            parts = [(role, part) for part in _cut(controls, text)]
            ids = [i for row, _ in _behind_headers(tokenizer, controls, parts) for i in row]
        gone = lost(tokenizer, text)
        if not controls.forbidden.keys().isdisjoint(ids):
            gone = unknown(tokenizer, text) or [text[:60]]
        if gone:
            raise OutsideVocabularyError(gone, text)
        found.append((ids, apart))
    return found


def _behind_headers(
    tokenizer: PreTrainedTokenizerBase, controls: Controls, flat: Sequence[tuple[str, str]]
) -> Iterator[tuple[list[int], bool]]:
    """Ids of each text as it is behind its header: read together with the header, which is then taken off.

    SentencePiece marks the start of what it reads with "▁", and byte-level BPE splits by what comes before; alone,
    a text would get other ids than inside the conversation. Where a piece spans header and text, the text is read
    alone all the same (True), so that nothing of it is lost.
    """
    for (role, text), row in zip(flat, plain_ids(tokenizer, [f"{role}\n{text}" for role, text in flat]), strict=True):
        header = controls.plain[role]
        # What is unknown at the header's end may go on into the text.
        apart = row[: len(header)] != header or header[-1] in controls.forbidden
        yield plain_ids(tokenizer, [text])[0] if apart else row[len(header) :], apart


def _cut(controls: Controls, text: str) -> list[str]:
    """A text cut inside each special token that is spelled in it, so that no merge can complete it."""
    cuts = {0, len(text)}
    for special in controls.forbidden.values():
        found = re.finditer(f"(?={re.escape(special)})", text)
        cuts |= {match.start() + max(1, len(special) // 2) for match in found}
    return [text[a:b] for a, b in pairwise(sorted(cuts))]
