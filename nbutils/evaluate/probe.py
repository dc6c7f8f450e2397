"""Which way of scoring a model bears: tried on the model itself, on a few tokens, against a plain forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nbutils.core.errors import UserError
from nbutils.evaluate.rows import Request, Row

if TYPE_CHECKING:
    from nbutils.evaluate.shared_prefix import SharedPrefixLM

TOLERANCE = {torch.float32: 2e-4, torch.float16: 0.1, torch.bfloat16: 0.5}
"""Nats by which log-probabilities of two correct ways may differ; a wrong mask is off by more."""


def find_way(lm: SharedPrefixLM) -> tuple[str, str]:
    """(`shared rows` | `causal rows` | `stock`, why not a better one). UserError for a model that isn't causal."""
    if lm.backend != "causal" or getattr(lm.config, "is_encoder_decoder", False):
        raise UserError(
            f"The model {lm._name()} is not a causal language model, which scoring needs; give one that is."
        )
    tokens = torch.randint(lm.config.get_text_config().vocab_size, (14,), generator=torch.Generator().manual_seed(0))
    ids = tokens.tolist()
    context, first, second = tuple(ids[:6]), tuple(ids[6:10]), tuple(ids[10:14])
    requests = [Request(context, first), Request(context, second), Request(context[:4], second[:2])]
    tolerance = TOLERANCE.get(next(lm.model.parameters()).dtype, 0.5)
    expected = [_plain(lm, request) for request in requests]
    _check_causal(lm, requests[0], expected[0], tolerance)
    rows = [Row.around(0, requests[0]), Row.around(2, requests[2])]  # of two lengths: one is padded
    if reason := _differs(lm, rows, requests, expected, tolerance):
        return "stock", f"its output layer cannot be given single positions ({reason})"
    if reason := _windowed(lm.config, lm.max_length):
        return "causal rows", reason
    row = Row.around(0, requests[0])
    row.add(1, requests[1], len(context))
    row.add(2, requests[2], len(context) - 2)
    if reason := _differs(lm, [row], requests, expected, tolerance):
        return "causal rows", f"its architecture refuses a custom attention mask ({reason})"
    return "shared rows", ""


def _plain(lm: SharedPrefixLM, request: Request, extra: tuple[int, ...] = ()) -> float:
    """The request's log-likelihood by a forward pass over just its tokens (and `extra` ones behind them)."""
    ids = torch.tensor([(*request.context, *request.continuation, *extra)], device=lm.device)
    with torch.inference_mode():
        logprobs = lm.model(ids).logits[0].float().log_softmax(-1)  # (L, V)
    first = len(request.context)
    return float(sum(logprobs[first - 1 + k, token] for k, token in enumerate(request.continuation)))


def _check_causal(lm: SharedPrefixLM, request: Request, expected: float, tolerance: float) -> None:
    if not abs(_plain(lm, request, request.context[:2]) - expected) <= tolerance and expected == expected:
        raise UserError(
            f"The model {lm._name()} is not causal: tokens that come later change the likelihood of earlier ones; "
            "give a causal language model."
        )


def _differs(
    lm: SharedPrefixLM, rows: list[Row], requests: list[Request], expected: list[float], tolerance: float
) -> str:
    """Why scoring these rows does not give the expected log-likelihoods; empty where it does."""
    try:
        with lm._gathering():
            scored = dict(lm._score_batch(rows, requests))
    except UserError:
        raise
    except Exception as error:  # whatever an architecture does with inputs that it was not made for
        return f"{type(error).__name__}: {str(error)[:80]}"
    worst = max(abs(scored[i][0] - expected[i]) for i in scored)
    return "" if worst <= tolerance else f"log-likelihoods off by {worst:.2g} nats"


def _windowed(config: Any, max_length: int) -> str:
    """Why a mask of ours would replace one that the model needs; a short probe cannot see that."""
    text = config.get_text_config()
    for name in ("sliding_window", "attention_chunk_size"):
        size = getattr(text, name, None)
        if size and size < max_length and getattr(text, f"use_{name}", True):
            return f"its layers attend to {size} tokens only"
    return ""
