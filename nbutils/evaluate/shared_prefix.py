"""SharedPrefixLM: lm-evaluation-harness's `hf` model, with every context read once and scored positions only.

Requests, truncation and results are those of `lm_eval.models.huggingface.HFLM` (lm-eval 0.4.13); the way there differs:
rows are planned in `nbutils.evaluate.rows` and read by `nbutils.evaluate.scorer`, and contexts that begin alike are
tokenized piece by piece.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import _add_special_kwargs, has_bos_prefix

from nbutils.core.jupyter import interactive
from nbutils.evaluate.rows import Request
from nbutils.evaluate.scorer import Answer, Progress, RowScorer, silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CHECKED = 16
"""Texts, the longest ones, on which tokenizing by pieces is compared with tokenizing whole."""


@register_model("shared-prefix")
class SharedPrefixLM(HFLM):
    """`HFLM` that reads shared contexts once; same constructor, and `tokens_per_batch` (0: by device).

    `strategy` says how requests are scored: `shared rows`, `causal rows` (the architecture refuses a custom mask), or
    `stock` (its output layer cannot be reached either); the choice is tested on the model itself before first use.
    `progress` is told how many of how many requests are scored.
    """

    def __init__(self, pretrained: Any, *args: Any, tokens_per_batch: int = 0, **kwargs: Any) -> None:
        super().__init__(pretrained, *args, **kwargs)
        name = pretrained if isinstance(pretrained, str) else type(self.model).__name__
        self.scorer = RowScorer(self.model, name, tokens_per_batch)
        self.progress: Progress = silent
        self._memo: dict[tuple[str, bool | None], list[int]] = {}
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None:  # stock shards over GPUs only, and by the local rank
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes

    @cached_property
    def strategy(self) -> str:
        """How requests are scored. UserError for a model that isn't causal."""
        strategy, reason = self.scorer.choose_strategy(self.max_length)
        if reason:
            logger.warning("%s: %s, so its requests are scored as %s.", self.scorer.name, reason, strategy)
        return strategy

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Answer]:
        """(log-likelihood, is greedy) of each (context, continuation), as stock gives them."""
        with self._tokenized(requests):  # so that stock's own bar would be over at once
            return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, in stock's windows; all windows are one batch, which is planned here."""
        stock, own = self.strategy == "stock", self.batch_size
        if not stock:
            self.batch_size_per_gpu = sys.maxsize
        try:
            quiet = disable_tqdm or not (stock and interactive())
            totals: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=quiet)
            return totals
        finally:
            self.batch_size_per_gpu = own

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string, by stock's own code; its bar is drawn where a person may look on."""
        written: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm or not interactive())
        return written

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, *args: Any, **kwargs: Any) -> list[int]:
        """Token ids of a string, as stock gives them; strings seen by `_tokenized` are looked up."""
        ids: list[int] | None = self._memo.get((string, add_special_tokens))
        return super().tok_encode(string, add_special_tokens, *args, **kwargs) if ids is None else ids

    def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> list[Answer]:
        if self.strategy == "stock":
            scored: list[Answer] = super()._loglikelihood_tokens(requests, *args, **kwargs)
            return scored
        unique: dict[Request, int] = {}
        places = []
        for _, context, continuation in requests:
            request = Request.fitted(context, continuation, self.max_length)
            places.append(unique.setdefault(request, len(unique)))
        answers = self.scorer.score(list(unique), self.strategy == "shared rows", self.progress)
        return [answers[place] for place in places]

    @contextmanager
    def _tokenized(self, requests: Sequence[Instance]) -> Iterator[None]:
        """While it lasts, `tok_encode` knows the strings that stock will ask for: tokenized in one batch."""
        plain, bare = set(), set()
        for request in requests:
            context, continuation = request.args
            if context == "":
                bare.add(continuation)
            else:
                plain |= {context.rstrip(), context + continuation}
        bos = self.tokenizer.decode(self.prefix_token_id)
        plain = {text for text in plain if not has_bos_prefix(text, bos)}
        try:
            for texts, asked in ((plain, None), (bare, False)):
                listed = list(texts)
                rows = encode_all(self.tokenizer, listed, **_add_special_kwargs(asked, self.add_bos_token))
                self._memo |= {(text, asked): ids for text, ids in zip(listed, rows, strict=True)}
            yield
        finally:
            self._memo = {}


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
