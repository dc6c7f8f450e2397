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
from itertools import chain
from typing import TYPE_CHECKING, Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import _add_special_kwargs

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
        own = self.batch_size_per_gpu
        if self.strategy != "stock":
            self.batch_size_per_gpu = sys.maxsize
        totals: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        self.batch_size_per_gpu = own
        return totals

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
        pairs, bos = [request.args for request in requests], self.tokenizer.decode(self.prefix_token_id)
        plain = {text for context, rest in pairs if context for text in (context.rstrip(), context + rest)}
        plain = {text for text in plain if not text.startswith(bos)}
        bare = {rest for context, rest in pairs if not context}
        for texts, asked in ((list(plain), None), (list(bare), False)):
            rows = encode_all(self.tokenizer, texts, **_add_special_kwargs(asked, self.add_bos_token))
            self._memo |= {(text, asked): ids for text, ids in zip(texts, rows, strict=True)}
        yield
        self._memo = {}


def encode_all(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: Any) -> list[list[int]]:
    """The ids that `tokenizer(texts, **options)` gives.

    The tokenizers library splits a text at special tokens before it does anything else, and a conversation's turns
    come back in every later context; so pieces are read once and put together, if that is right for this tokenizer:
    one that treats the beginning of a text differently, or puts a token in front, gets whole texts.
    """

    def read(some: Sequence[str], **how: Any) -> list[list[int]]:
        found: list[list[int]] = tokenizer(some, return_attention_mask=False, verbose=False, **how)["input_ids"]
        return found

    if not texts:
        return []
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not added or any(t.lstrip or t.rstrip or t.single_word or t.normalized for t in added):
        return read(texts, **options)
    longest_first = sorted((re.escape(token.content) for token in added), key=len, reverse=True)
    splitter = re.compile(f"({'|'.join(longest_first)})")
    pieces = {text: list(filter(None, splitter.split(text))) for text in texts}
    unique = list(dict.fromkeys(chain.from_iterable(pieces.values())))
    known = dict(zip(unique, read(unique, add_special_tokens=False), strict=True))
    joined = {text: [i for piece in split for i in known[piece]] for text, split in pieces.items()}
    checked = sorted(texts, key=len)[-CHECKED:]
    if [joined[text] for text in checked] != read(checked, **options):
        return read(texts, **options)
    return [joined[text] for text in texts]
