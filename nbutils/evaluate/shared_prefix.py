"""SharedPrefixLM: lm-evaluation-harness's `hf` model, with every context read once and scored positions only.

Requests, truncation and results are those of `lm_eval.models.huggingface.HFLM` (lm-eval 0.4.13); the way there differs:
rows are planned in `nbutils.evaluate.rows`, read with a 4-D mask where they branch, and the output layer is applied
only at positions whose next token is scored. Log-probabilities are taken in float32 whatever the model's precision.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval import utils
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import _add_special_kwargs, has_bos_prefix

from nbutils.core.errors import UserError
from nbutils.core.jupyter import interactive
from nbutils.evaluate.encoding import encode_all
from nbutils.evaluate.rows import Request, Row, batches, plan_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lm_eval.api.instance import Instance

logger = logging.getLogger(__name__)

TOKENS_PER_BATCH = {"cuda": 16_384, "mps": 4096}
"""Padded tokens of a batch on an accelerator, where the caller names no number."""
CPU_CACHE_BYTES = 3 << 20
"""On a CPU the widest activation of a batch should stay in the cache: measured on 1.3M and 135M parameters."""
LONGEST_BRANCHED = 2048
"""Tokens of the longest row with branches; its mask is quadratic."""
CHUNK = 256
"""Scored positions that are normalised at once: the vocabulary-wide temporaries stay small."""


@contextmanager
def _uncounted(total: int, say: Callable[[str], None], *, off: bool = False) -> Iterator[Any]:
    """Shows nothing of how far the scoring is."""
    yield SimpleNamespace(update=lambda count: None)


@register_model("shared-prefix")
class SharedPrefixLM(HFLM):
    """`HFLM` that reads shared contexts once; same constructor, and `tokens_per_batch` (0: by device).

    `way` says how requests are scored: `shared rows`, `causal rows` (the architecture refuses a custom mask), or
    `stock` (its output layer cannot be reached either); the choice is tested on the model itself before first use.
    """

    def __init__(self, pretrained: Any, *args: Any, tokens_per_batch: int = 0, **kwargs: Any) -> None:
        super().__init__(pretrained, *args, **kwargs)
        self.tokens_per_batch = tokens_per_batch or _tokens_per_batch(self.device.type, self.config)
        self.tokens_read = 0
        self.say: Callable[[str], None] = print
        self.counter: Callable[..., AbstractContextManager[Any]] = _uncounted
        self._way = ""
        self._bar_off = False
        self._wanted = threading.local()
        self._memo: dict[tuple[str, bool], list[int]] = {}
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None:  # stock shards over GPUs only, and by the local rank
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes

    @cached_property
    def prefix_token_id(self) -> int:
        """The token in front of an empty context, as stock chooses it; asked for thousands of times, looked up once."""
        return int(super().prefix_token_id)

    @property
    def way(self) -> str:
        """How requests are scored: `shared rows`, `causal rows` or `stock`."""
        if not self._way:
            self._way = self._find_way()
        return self._way

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of each (context, continuation), as stock gives them."""
        self._bar_off = disable_tqdm
        with self._tokenized(requests):  # so that stock's own bar would be over at once
            return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, in stock's windows, all windows planned together."""
        if self.way == "stock":
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm or not interactive())
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in map(utils.make_disjoint_window, rolling):
                windows.append((None, *window))
                owners.append(owner)
        totals = [0.0] * len(requests)
        self._bar_off = disable_tqdm
        scores = self._loglikelihood_tokens(windows) if windows else []
        for owner, (loglikelihood, _) in zip(owners, scores, strict=True):
            totals[owner] += loglikelihood
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string, by stock's own code; its bar is drawn where a person may look on."""
        written: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm or not interactive())
        return written

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of a string, as stock gives them; strings seen by `_tokenized` are looked up."""
        known = self._memo.get((string, add_special_tokens is None)) if left_truncate_len is None else None
        if known is not None and add_special_tokens is not True:
            return known
        ids: list[int] = super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if self.way == "stock":
            scored: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return scored
        unique: dict[Request, int] = {}
        places = []
        for _, context, continuation in requests:
            request = Request.fitted(context, continuation, self.max_length)
            places.append(unique.setdefault(request, len(unique)))
        answers = self._score(list(unique))
        results = [answers[place] for place in places]
        for (key, _, _), answer in zip(requests, results, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return results

    def _score(self, requests: list[Request]) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of each request."""
        rows = plan_rows(
            requests,
            longest=LONGEST_BRANCHED,
            attention_even=_attention_even(self.config),
            share=self.way == "shared rows",
        )
        planned = list(batches(rows, self.tokens_per_batch))
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        off = self._bar_off or self.rank != 0
        with self._gathering(), self.counter(len(requests), self.say, off=off) as bar:
            for scored in _each(lambda batch: self._score_batch(batch, requests), planned, self.device.type):
                for index, answer in scored:
                    answers[index] = answer
                bar.update(len(scored))
        return answers

    def _score_batch(self, batch: list[Row], requests: list[Request]) -> list[tuple[int, tuple[float, bool]]]:
        inputs = _tensors(batch, self._mask_dtype(), self.device)
        length = inputs["input_ids"].shape[1]
        indices = [index for row in batch for index, _ in row.scored]
        flat = [r * length + p for r, row in enumerate(batch) for _, positions in row.scored for p in positions]
        targets = [token for index in indices for token in requests[index].continuation]
        self.tokens_read += inputs["input_ids"].numel()
        unique, which = np.unique(flat, return_inverse=True)  # continuations that begin alike share positions
        logits = self._logits_at(inputs, torch.from_numpy(unique).to(self.device))  # (P, V)
        logprobs, greedy = _gathered(logits, which, np.array(targets))  # (N,), (N,)
        if not np.isfinite(logprobs).all():
            raise UserError(
                f"The model {self._name()} gives NaN or infinite log-likelihoods; its weights are damaged or overflow "
                "in this precision: score it in fp32, or train it again."
            )
        starts = np.cumsum([0, *(len(requests[index].continuation) for index in indices[:-1])])
        sums = np.add.reduceat(logprobs, starts)
        hits = np.logical_and.reduceat(greedy, starts)
        return [(i, (float(s), bool(h))) for i, s, h in zip(indices, sums, hits, strict=True)]

    def _logits_at(self, inputs: dict[str, torch.Tensor], flat: torch.Tensor) -> torch.Tensor:
        """Logits (N, V) at flat positions of a batch; the output layer sees nothing but these positions."""
        self._wanted.flat = flat
        try:
            with (
                torch.inference_mode(),
                torch.autocast(
                    self.device.type, dtype=self.mixed_precision_dtype, enabled=self.mixed_precision_dtype is not None
                ),
            ):
                logits: torch.Tensor = self.model(**inputs, use_cache=False).logits
        finally:
            self._wanted.flat = None
        if logits.shape[:2] != (1, len(flat)):
            raise ValueError(f"the output layer gave {tuple(logits.shape)} for {len(flat)} positions")
        return logits[0]

    @contextmanager
    def _gathering(self) -> Iterator[None]:
        """While it lasts, the output layer sees nothing but the positions that `_logits_at` wants, in each thread."""

        def gather(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden, flat = arguments[0], self._wanted.flat  # (B, L, D), (N,)
            return (hidden.reshape(-1, hidden.shape[-1])[flat][None], *arguments[1:])

        handle = self.model.get_output_embeddings().register_forward_pre_hook(gather)
        try:
            yield
        finally:
            handle.remove()

    def _mask_dtype(self) -> torch.dtype:
        # A boolean mask is what SDPA takes; the eager path adds the mask to the scores.
        sdpa = getattr(self.config, "_attn_implementation", "sdpa") == "sdpa"
        return torch.bool if sdpa else next(self.model.parameters()).dtype

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
                self._memo |= {(text, asked is None): ids for text, ids in zip(listed, rows, strict=True)}
            yield
        finally:
            self._memo = {}

    def _find_way(self) -> str:
        """Tries the model on a few tokens: is it causal, can its output layer be reached, does it take a mask?"""
        from nbutils.evaluate.probe import find_way

        way, reason = find_way(self)
        if way != "shared rows":
            logger.warning("%s: %s, so its requests are scored as %s.", self._name(), reason, way)
        return way

    def _name(self) -> str:
        return self.pretrained if isinstance(self.pretrained, str) else type(self.model).__name__


def _each(
    work: Callable[[list[Row]], list[tuple[int, tuple[float, bool]]]], planned: list[list[Row]], device: str
) -> Iterator[list[tuple[int, tuple[float, bool]]]]:
    """The work on each batch. On a CPU the batches share torch's threads out, one thread to a batch.

    Threads that split every single operation wait for one another at its end: on small models that takes longer than
    the operation, and where other programs use the cores too, many times as long.
    """
    threads = torch.get_num_threads() if device == "cpu" else 1
    if threads == 1 or len(planned) < 2 * threads:
        yield from map(work, planned)
        return
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(work, planned)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _tensors(batch: list[Row], mask_dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    """Right-padded ids (B, L); for rows with branches also position ids (B, L) and the 4-D mask (B, 1, L, L)."""
    length = max(map(len, batch))
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    for r, row in enumerate(batch):
        ids[r, : len(row)] = torch.tensor(row.ids)
    if not batch[0].branched:
        return {"input_ids": ids.to(device)}
    segment = torch.full((len(batch), length), -1)  # padding is a segment of its own: no query sees nothing
    start = torch.zeros(len(batch), length, dtype=torch.long)
    offset = torch.zeros(len(batch), length, dtype=torch.long)
    for r, row in enumerate(batch):
        lengths = torch.tensor(row.lengths)
        ends = lengths.cumsum(0)
        segment[r, : len(row)] = torch.arange(len(lengths)).repeat_interleave(lengths)
        start[r, : len(row)] = torch.tensor(row.starts).repeat_interleave(lengths)
        offset[r, : len(row)] = torch.arange(len(row)) - (ends - lengths).repeat_interleave(lengths)
    segment, start, offset = segment.to(device), start.to(device), offset.to(device)
    index = torch.arange(length, device=device)
    causal = index[None, :] <= index[:, None]  # (L, L)
    own = segment[:, None, :] == segment[:, :, None]  # (B, L, L)
    context = (segment[:, None, :] == 0) & (index[None, None, :] < start[:, :, None])  # (B, L, L)
    seen = ((own & causal) | context)[:, None]  # (B, 1, L, L)
    if mask_dtype != torch.bool:
        seen = torch.zeros(seen.shape, dtype=mask_dtype, device=device).masked_fill(~seen, torch.finfo(mask_dtype).min)
    return {"input_ids": ids.to(device), "position_ids": start + offset, "attention_mask": seen}


def _gathered(logits: torch.Tensor, which: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each target (N,) in the row `which` (N,) of logits (P, V), and whether it is greedy's choice.

    Taken in float32, given as float64 to be summed.
    """
    logprobs, greedy = np.empty(len(which)), np.empty(len(which), bool)
    order = np.argsort(which, kind="stable")
    bounds = np.searchsorted(which[order], np.arange(0, len(logits) + CHUNK, CHUNK))
    for number, part in enumerate(logits.split(CHUNK)):
        # Stock's own kernel: over a vocabulary of 49,152 its float32 sum is off by 7e-6 nats a token, always to the
        # same side, which a log-sum-exp that is exact would show as 0.01 nats on a page.
        normalised = part.float().log_softmax(dim=1)  # (p, V)
        entries = order[bounds[number] : bounds[number + 1]]
        row = torch.from_numpy(which[entries] - number * CHUNK).to(logits.device)  # (n,)
        target = torch.from_numpy(targets[entries]).to(logits.device)  # (n,)
        chosen = normalised[row, target]
        best = chosen == normalised.amax(dim=1)[row]
        if best.any():  # among equals the first is greedy's, and argmax is too slow to ask for every row
            best[best.clone()] = normalised[row[best]].argmax(dim=1) == target[best]
        logprobs[entries], greedy[entries] = chosen.double().cpu().numpy(), best.cpu().numpy()
    return logprobs, greedy


def _attention_even(config: Any) -> float:
    """Keys at which a token's attention costs as much as its linear layers, from the configuration's sizes."""
    hidden, inner = _sizes(config)
    return (8 * hidden * hidden + 6 * hidden * inner) / (4 * hidden)


def _tokens_per_batch(device: str, config: Any) -> int:
    if device in TOKENS_PER_BATCH:
        return TOKENS_PER_BATCH[device]
    return min(4096, max(256, CPU_CACHE_BYTES // (4 * _sizes(config)[1])))


def _sizes(config: Any) -> tuple[int, int]:
    """Hidden and feed-forward width."""
    text = config.get_text_config()
    hidden = int(getattr(text, "hidden_size", 768))
    return hidden, int(getattr(text, "intermediate_size", None) or 4 * hidden)
