"""Replies to fixed prompts during training, so that one can watch the model learn to talk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nbutils.core.generation import generate_replies

NEW_TOKENS = 60


def sample_replies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> list[dict[str, Any]]:
    """Greedy replies of at most 60 tokens, one a prompt, and whether each ended by itself."""
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    if not conversations:
        return []
    replies = generate_replies(model, tokenizer, conversations, max_new_tokens=NEW_TOKENS)
    return [
        {"prompt": prompt, "reply": reply.text, "ended": reply.ended}
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
