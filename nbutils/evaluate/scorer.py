"""RowScorer: log-likelihoods of many requests by forward passes over the rows that they share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from nbutils.core.errors import UserError
from nbutils.core.jupyter import interactive
from nbutils.evaluate.rows import Request, Row, batches, plan_rows

TOKENS_PER_BATCH = {"cuda": 16_384, "mps": 4096}
"""Padded tokens of a batch on an accelerator, where the caller names no number."""
CPU_CACHE_BYTES = 3 << 20
"""On a CPU the widest activation of a batch should stay in the cache: measured on 1.3M and 135M parameters."""
LONGEST_BRANCHED = 2048
"""Tokens of the longest row with branches; its mask is quadratic."""
CHUNK = 256
"""Scored positions that are normalised at once: the vocabulary-wide temporaries stay small."""
BAR_AFTER = 5.0
"""Seconds of scoring after which a bar appears."""
LINE_EVERY = 60.0
"""Seconds between two lines, where there is no bar."""
TOLERANCE = {torch.float32: 2e-4, torch.float16: 0.1, torch.bfloat16: 0.5}
"""Nats by which log-probabilities of two correct ways may differ; a wrong mask is off by more."""

Answer = tuple[float, bool]
"""Log-likelihood of a continuation, and whether it is what greedy decoding would write."""
Say = Callable[[str], None]
"""What tells a person a line."""


@contextmanager
def progress(total: int, say: Say) -> Iterator[Callable[[int], None]]:
    """Shows how far the scoring is: a bar in Jupyter that leaves nothing behind, elsewhere a line a minute.

    Gives the function that counts more of them.
    """
    looks: dict[str, Any] = {} if interactive() else {"file": StringIO(), "mininterval": LINE_EVERY, "miniters": 1}
    with tqdm(total=total, unit=" requests", delay=BAR_AFTER, leave=False, **looks) as bar:

        def count(more: int) -> None:
            if bar.update(more) and looks:  # the bar has changed, which nobody sees
                say(str(bar))

        yield count


class RowScorer:
    """Scores requests with one model; of each batch the output layer sees the scored positions only.

    Log-probabilities are taken in float32 whatever the model's precision.
    """

    def __init__(self, model: Any, tokens_per_batch: int = 0) -> None:
        self.model, self.device = model, model.device
        text = model.config.get_text_config()
        hidden = int(text.hidden_size)
        inner = int(getattr(text, "intermediate_size", None) or 4 * hidden)
        default = TOKENS_PER_BATCH.get(self.device.type) or min(4096, max(256, CPU_CACHE_BYTES // (4 * inner)))
        self.tokens_per_batch = tokens_per_batch or default
        # Keys at which a token's attention (4 hidden for each) costs as much as its linear layers.
        self._attention_even = 2 * hidden + 1.5 * inner
        self._wanted = threading.local()

    def score(self, requests: Sequence[Request], share: bool, say: Say = print) -> list[Answer]:
        """The answer to each request; `share` off keeps to rows that need no mask."""
        rows = plan_rows(requests, longest=LONGEST_BRANCHED, attention_even=self._attention_even, share=share)
        planned = list(batches(rows, self.tokens_per_batch))
        answers: dict[int, Answer] = {}
        with self._gathering(), progress(len(requests), say) as count:
            for scored in self._in_threads(planned, requests):
                answers |= scored
                count(len(scored))
        return [answers[index] for index in range(len(requests))]

    def choose_strategy(self, max_length: int) -> str:
        """`shared rows`, `causal rows` or `stock`: the first whose numbers on a few tokens are those of a plain forward
        pass. UserError for a model that isn't causal.
        """
        vocabulary, seeded = self.model.config.get_text_config().vocab_size, torch.Generator().manual_seed(0)
        ids = tuple(torch.randint(vocabulary, (18,), generator=seeded).tolist())
        requests = [Request(ids[:10], ids[10:14]), Request(ids[:10], ids[14:]), Request(ids[:4], ids[14:16])]
        tolerance = TOLERANCE.get(next(self.model.parameters()).dtype, 0.5)
        expected = [self._plain(request) for request in requests]
        if not abs(self._plain(requests[0], ids[:2]) - expected[0]) <= tolerance and expected[0] == expected[0]:
            raise UserError(
                f"The model {self.model.name_or_path} is not causal: tokens that come later change the likelihood of "
                "earlier ones; give a causal language model."
            )

        def agrees(share: bool) -> bool:
            """Whether scoring gives the expected log-likelihoods."""
            try:
                scored = self.score(requests, share)
            except UserError:
                raise
            except Exception:  # whatever an architecture does with inputs that it was not made for
                return False
            return max(abs(found - right) for (found, _), right in zip(scored, expected, strict=True)) <= tolerance

        if not agrees(share=False):
            return "stock"
        return "causal rows" if _windowed(self.model.config, max_length) or not agrees(share=True) else "shared rows"

    def _plain(self, request: Request, extra: tuple[int, ...] = ()) -> float:
        """The request's log-likelihood by a forward pass over just its tokens (and `extra` ones behind them)."""
        ids = torch.tensor([(*request.context, *request.continuation, *extra)], device=self.device)
        with torch.inference_mode():
            logits = self.model(ids).logits[0].float()  # (L, V)
        scored = slice(len(request.context), len(request.context) + len(request.continuation))
        return -float(cross_entropy(logits.roll(1, 0)[scored], ids[0, scored], reduction="sum"))

    def _in_threads(self, planned: list[list[Row]], requests: Sequence[Request]) -> Iterator[dict[int, Answer]]:
        """The answers of each batch. On a CPU the batches share torch's threads out, one thread to a batch.

        Threads that split every single operation wait for one another at its end: on small models that takes longer
        than the operation, and where other programs use the cores too, many times as long.
        """
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        score = partial(self._score_batch, requests)
        if threads == 1 or len(planned) < 2 * threads:
            yield from map(score, planned)
            return
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        try:
            yield from pool.map(score, planned)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)

    def _score_batch(self, requests: Sequence[Request], batch: list[Row]) -> dict[int, Answer]:
        inputs = self._tensors(batch)
        length = inputs["input_ids"].shape[1]
        indices = [index for row in batch for index, _ in row.scored]
        flat = [r * length + p for r, row in enumerate(batch) for _, positions in row.scored for p in positions]
        targets = [token for index in indices for token in requests[index].continuation]
        # Continuations that begin alike share positions.
        self._wanted.flat, which = torch.tensor(flat, device=self.device).unique(return_inverse=True)  # (P,), (N,)
        with torch.inference_mode():
            logits = self.model(**inputs, use_cache=False).logits
        if logits.shape[:2] != (1, len(self._wanted.flat)):
            raise ValueError(f"the output layer gave {tuple(logits.shape)} for {len(self._wanted.flat)} positions")
        logprobs, greedy = _logprobs(logits[0], which, torch.tensor(targets, device=self.device))  # (N,), (N,)
        if not np.isfinite(logprobs).all():
            raise UserError(
                f"The model {self.model.name_or_path} gives NaN or infinite log-likelihoods; its weights are damaged "
                "or overflow in this precision: score it in fp32, or train it again."
            )
        starts = np.cumsum([0, *(len(requests[index].continuation) for index in indices[:-1])])
        sums = np.add.reduceat(logprobs, starts)
        hits = np.logical_and.reduceat(greedy, starts)
        return {i: (float(s), bool(h)) for i, s, h in zip(indices, sums, hits, strict=True)}

    @contextmanager
    def _gathering(self) -> Iterator[None]:
        """While it lasts, the output layer sees nothing but the positions that are wanted, in each thread others."""

        def gather(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden, flat = arguments[0], self._wanted.flat  # (B, L, D), (N,)
            return (hidden.reshape(-1, hidden.shape[-1])[flat][None], *arguments[1:])

        with self.model.get_output_embeddings().register_forward_pre_hook(gather):
            yield

    def _tensors(self, batch: list[Row]) -> dict[str, torch.Tensor]:
        """Right-padded ids (B, L); for rows with branches also position ids (B, L) and the 4-D mask (B, 1, L, L)."""
        columns = zip(*((row.ids, row.positions, row.begins) for row in batch), strict=True)
        ids, positions, begins = (
            pad_sequence([torch.tensor(own) for own in column], batch_first=True).to(self.device) for column in columns
        )
        if not batch[0].branched:
            return {"input_ids": ids}
        slots = torch.arange(ids.shape[1], device=self.device)
        leaves = positions + begins - slots  # where the branch of each token leaves the trunk
        between = (slots >= leaves[..., None]) & (slots < begins[..., None])  # (B, L, L)
        dtype = next(self.model.parameters()).dtype
        mask = torch.zeros_like(between, dtype=dtype)  # added to the scores
        mask = mask.masked_fill(between | (slots > slots[:, None]), torch.finfo(dtype).min)
        return {"input_ids": ids, "position_ids": positions, "attention_mask": mask[:, None]}


def _logprobs(logits: torch.Tensor, which: torch.Tensor, targets: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each target (N,) in the row `which` (N,) of logits (P, V), and whether it is greedy's choice.

    Taken in float32, given as float64 to be summed.
    """
    logprobs, greedy = targets.double(), targets > 0  # to be overwritten, all of them
    for first in range(0, len(logits), CHUNK):
        # Stock's own kernel: over a vocabulary of 49,152 its float32 sum is off by 7e-6 nats a token, always to the
        # same side, which a log-sum-exp that is exact would show as 0.01 nats on a page.
        normalised = logits[first : first + CHUNK].float().log_softmax(dim=1)  # (p, V)
        entries = (first <= which) & (which < first + CHUNK)  # (N,)
        row, target = which[entries] - first, targets[entries]  # (n,)
        chosen = normalised[row, target]
        best = chosen == normalised.amax(dim=1)[row]
        if best.any():  # among equals the first is greedy's, and argmax is too slow to ask for every row
            best[best.clone()] = normalised[row[best]].argmax(dim=1) == target[best]
        logprobs[entries], greedy[entries] = chosen.double(), best
    return logprobs.cpu().numpy(), greedy.cpu().numpy()


def _windowed(config: Any, max_length: int) -> bool:
    """Whether a mask of ours would replace one that the model needs; a short probe cannot see that."""
    text = config.get_text_config()
    return any(
        (getattr(text, name, None) or max_length) < max_length and getattr(text, f"use_{name}", True)
        for name in ("sliding_window", "attention_chunk_size")
    )
