"""SharedPrefixLM: lm-evaluation-harness's `hf` model, with every context read once and scored positions only.

Requests, truncation and results are those of `lm_eval.models.huggingface.HFLM` (lm-eval 0.4.13); the way there differs:
rows are planned in `nbutils.evaluate.rows` and read by `nbutils.evaluate.scorer`, and contexts that begin alike are
tokenized piece by piece.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from nbutils.core.errors import UserError
from nbutils.evaluate.rows import Request
from nbutils.evaluate.scorer import Answer, RowScorer, Say


@register_model("shared-prefix")
class SharedPrefixLM(HFLM):
    """`HFLM` that reads shared contexts once; same constructor, and `tokens_per_batch` (0: by device).

    `strategy` says how requests are scored: `shared rows`, `causal rows` (the architecture refuses a custom mask), or
    `stock` (its output layer cannot be reached either); the choice is tested on the model itself before first use.
    `say` is told how many of how many requests are scored, where that takes long.
    """

    def __init__(self, pretrained: Any, *args: Any, tokens_per_batch: int = 0, **kwargs: Any) -> None:
        super().__init__(pretrained, *args, **kwargs)
        self.scorer = RowScorer(self.model, tokens_per_batch)
        self.say: Say = print
        self._pieces: dict[str, list[int]] = {}
        self.state = PartialState()
        self.divide(True)

    def divide(self, divided: bool) -> None:
        """Whether each of several processes scores a part of the next task's items, or all of them.

        Stock divides over GPUs only, and by the local rank.
        """
        self._rank: int = self.state.process_index if divided else 0
        self._world_size: int = self.state.num_processes if divided else 1

    @cached_property
    def strategy(self) -> str:
        """How requests are scored. UserError for a model that isn't causal."""
        return self.scorer.choose_strategy(self.max_length)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Answer]:
        """(log-likelihood, is greedy) of each (context, continuation), as stock gives them."""
        return self._together(super().loglikelihood, requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, in stock's windows; all windows are one batch, which is planned here."""
        own = self.batch_size
        if self.strategy != "stock":
            self.batch_size_per_gpu = sys.maxsize
        totals = self._together(super().loglikelihood_rolling, requests)
        self.batch_size_per_gpu = own
        return totals

    def _together(self, scored: Callable[..., list[Any]], requests: list[Instance]) -> list[Any]:
        """The answers; where one of several processes cannot score its part the UserError is everybody's.

        The others would wait for it.
        """
        answers, faults = [], []
        try:
            answers = scored(requests, disable_tqdm=True)
        except UserError as error:
            faults = [str(error)]
        if faults := gather_object(faults):
            raise UserError(faults[0])
        return answers

    @cached_property
    def _splitter(self) -> re.Pattern[str] | None:
        """What splits a text at special tokens; None where a text's ids are not those of its pieces."""
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        splitter = re.compile(f"({'|'.join(sorted(map(re.escape, special), key=len, reverse=True))})")
        probe = "".join(f"Hi {token}Hi{token} x \n{token}\nx" for token in special)
        encode = super().tok_encode
        pieces = [i for piece in splitter.split(probe) for i in encode(piece, add_special_tokens=False)]
        return splitter if special and pieces == encode(probe) else None

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        """Token ids of a string, as stock gives them.

        The tokenizers library splits a text at special tokens before it does anything else, and a conversation's turns
        come back in every later context: so each piece is read once. A tokenizer that treats the beginning of a text
        differently, or puts a token in front, reads whole texts.
        """
        if self._splitter is None:
            return super().tok_encode(string, *args, **kwargs)
        ids: list[int] = []
        for piece in self._splitter.split(string):
            if piece not in self._pieces:
                self._pieces[piece] = super().tok_encode(piece, add_special_tokens=False)
            ids += self._pieces[piece]
        return ids

    def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> list[Answer]:
        if self.strategy == "stock":
            return super()._loglikelihood_tokens(requests, *args, **kwargs)
        asked = [Request.fitted(context, continuation, self.max_length) for _, context, continuation in requests]
        unique = list(dict.fromkeys(asked))
        answers = self.scorer.score(unique, self.strategy == "shared rows", self.say)
        found = dict(zip(unique, answers, strict=True))
        return [found[request] for request in asked]
