"""A tokenizer as llama.cpp writes one down: its kind, pieces, their types and scores, or merges.

llama.cpp has its own tokenizers and knows how to split a text by name only (`src/llama-vocab.cpp`, `tokenizer_pre`).
Whether a name was the right one is proven by ids, in `gguf_parity`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf import GGUFWriter, TokenType
from tokenizers.normalizers import NFC

from nbutils.core.chatml import IM_END
from nbutils.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLITS = {
    r"\\p{N}{1,3}| ?[^\\s": "llama-bpe",
    r"\\p{N}| ?[^\\s": "qwen2",
    '"individual_digits": true': "smollm",
    '"use_regex": true': "gpt-2",
}
"""What tells how a byte-level BPE splits a text, the first that its JSON has → llama.cpp's name for that."""

SENTENCEPIECE = {"Sequence", "Prepend", "Replace", "Metaspace"}
"""Steps of one like SentencePiece's before its merges: all they do is to mark spaces."""

LOWEST = -1e9
"""The score of a piece that no merge makes."""


@dataclass(frozen=True)
class Vocabulary:
    """`model` is llama.cpp's kind: `gpt2` (byte-level BPE, with `pre` and `merges`) or `llama` (SentencePiece's BPE,
    with `scores`). `space`: whether a text is read as if a space stood before it.
    """

    model: str
    tokens: list[str]
    types: list[TokenType]
    special: dict[str, int]
    pre: str = "default"
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    space: bool = False

    def write(self, writer: GGUFWriter) -> None:
        """Adds it to a file's metadata. No BOS is put before a text: no row of the training had one."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        writer.add_add_space_prefix(self.space)
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(False)
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)


def vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """The vocabulary for an embedding of that many rows; UserError for a tokenizer that llama.cpp has nothing like."""
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    model = data["model"]
    if model["type"] != "BPE":
        raise _unknown(f"is of the kind {model['type']}")
    ids = tokenizer.get_vocab()
    rows = max(rows, *(i + 1 for i in ids.values()))  # a base's tokens may be more than its rows
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [TokenType.UNUSED] * rows
    for piece, i in model["vocab"].items():
        tokens[i], types[i] = piece, TokenType.NORMAL
    for added in data["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], kind
    # None is ever put before a text; but where a file names no BOS, llama.cpp takes token 11 for one.
    ends = {"eos": IM_END, "eot": IM_END, "pad": tokenizer.pad_token, "bos": tokenizer.bos_token or IM_END}
    special = {name: ids[token] for name, token in ends.items() if token in ids}
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    reads = json.dumps([data["normalizer"], data["pre_tokenizer"]], ensure_ascii=False)
    if "ByteLevel" in str(data["decoder"]):
        pre = next((name for mark, name in SPLITS.items() if mark in reads), None)
        if not pre or '"add_prefix_space": true' in reads or (data["normalizer"] and not composes(tokenizer)):
            raise _unknown("splits a text in its own way")
        return Vocabulary("gpt2", tokens, types, special, pre, tuple(map(" ".join, merges)))
    if not model["byte_fallback"] or "▁" not in reads or set(re.findall(r'"type": "(\w+)"', reads)) - SENTENCEPIECE:
        raise _unknown("is neither a byte-level BPE nor one like SentencePiece's")
    types = [
        TokenType.BYTE if re.fullmatch("<0x[0-9A-F]{2}>", t) else kind for t, kind in zip(tokens, types, strict=True)
    ]
    if tokenizer.unk_token in ids:
        types[ids[tokenizer.unk_token]] = TokenType.UNKNOWN
        special["unk"] = ids[tokenizer.unk_token]
    space = '"Prepend"' in reads or '"always"' in reads  # wherever a text begins, behind a control token too
    return Vocabulary("llama", tokens, types, special, scores=_scores(tokens, merges), space=space)


def composes(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it reads an accent that stands apart as part of its letter (NFC), as no tokenizer of llama.cpp does."""
    return isinstance(tokenizer.backend_tokenizer.normalizer, NFC)


def _scores(tokens: list[str], merges: list[list[str]]) -> tuple[float, ...]:
    """Of two neighbours llama.cpp merges the pair whose whole has the highest score: minus the rank of its merge here.

    Not those of a `tokenizer.model`: there pieces of several spaces, which transformers merges first, have the lowest.
    """
    scores = dict[str, float]()
    for rank, pair in enumerate(merges):
        scores.setdefault("".join(pair), -float(rank))
    return tuple(scores.get(token, LOWEST) for token in tokens)


def _unknown(why: str) -> UserError:
    return UserError(
        f"No GGUF file can be made of this model: its tokenizer {why}, and llama.cpp has none like it; set gguf to []."
    )
