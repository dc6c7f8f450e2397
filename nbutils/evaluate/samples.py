"""Sample replies to the reference card's five prompts: uncurated, seeded, each alone and all in one conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nbutils.core.chat_engine.generation import Reply, generate_replies
from nbutils.core.chatml import encode
from nbutils.core.run.models import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS = (
    "Act as a polite pirate and tell me how to find a good cup of coffee.",
    "Pretend you are a professional chef. Give me one quick tip on how to cook a perfect egg.",
    "Write a quick, polite email to my boss saying I will be 15 minutes late today because of traffic.",
    "Write a very short, 4-line poem about a cat sleeping on a sunny window.",
    "Why is the sky blue? Explain it in one simple sentence.",
)
"""As written on the reference card."""


def sample_rows(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    seed: int,
    prompts: Sequence[str] = PROMPTS,
) -> list[dict[str, Any]]:
    """Rows of `samples.jsonl`: the first prompts answered alone, then the same ones in one conversation.

    Sampled as in the reference (temperature 0.75, top-p 0.9, repetition penalty 1.2). The first sample is the one
    shown; nothing is drawn twice. A conversation that outgrows the model loses its oldest turns, as a chat does.
    """
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "greedy": False, "seed": seed}
    alone = [[{"role": "user", "content": prompt}] for prompt in prompts]
    replies = generate_replies(model, tokenizer, alone, **options)
    rows = [_row(name, "alone", turn, p, r) for turn, (p, r) in enumerate(zip(prompts, replies, strict=True))]
    messages: list[dict[str, str]] = []
    for turn, prompt in enumerate(prompts):
        messages.append({"role": "user", "content": prompt})
        while len(messages) > 1 and _length(tokenizer, messages) + max_new_tokens > context_length(model):
            messages = messages[2:]
        reply = generate_replies(model, tokenizer, [messages], **options)[0]
        messages.append({"role": "assistant", "content": reply.text})
        rows.append(_row(name, "conversation", turn, prompt, reply))
    return rows


def _length(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> int:
    return len(encode(tokenizer, messages, add_generation_prompt=True))


def _row(name: str, mode: str, turn: int, prompt: str, reply: Reply) -> dict[str, Any]:
    return {
        "model": name,
        "mode": mode,
        "turn": turn,
        "prompt": prompt,
        "reply": reply.text,
        "ended": reply.ended,
        "tokens": len(reply.token_ids),
    }
