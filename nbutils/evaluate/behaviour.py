"""How a chat model replies: figures counted on held-out user turns, and samples to read."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import islice
from statistics import NormalDist, median
from typing import Any

import pandas as pd

from nbutils.core.chat_engine.generation import Reply, generate_replies
from nbutils.core.chat_engine.template import has_own_template
from nbutils.core.chatml import IM_END, IM_START, encode
from nbutils.core.files import Json
from nbutils.core.run.models import context_length
from nbutils.core.vocabulary import special_strings
from nbutils.evaluate.heldout import Conversation, folded

ROLE_HEADER = re.compile(r"(^|\n)\s*(user|assistant|system|human|bot)\s*(:|\n)|<\|", re.IGNORECASE)
NGRAM = 4
PROMPTS = (
    "Act as a polite pirate and tell me how to find a good cup of coffee.",
    "Pretend you are a professional chef. Give me one quick tip on how to cook a perfect egg.",
    "Write a quick, polite email to my boss saying I will be 15 minutes late today because of traffic.",
    "Write a very short, 4-line poem about a cat sleeping on a sunny window.",
    "Why is the sky blue? Explain it in one simple sentence.",
)
"""As written on the reference card."""


def user_turns(
    conversations: Sequence[Conversation], tokenizer: Any, count: int, room: int, seed: int
) -> list[list[Json]]:
    """Beginnings of held-out conversations, each up to a reply of the assistant; before it are at most `room` tokens.

    One for each of `count` conversations, both chosen by the seed.
    """
    rng = random.Random(f"behaviour {seed}")
    chosen: list[list[Json]] = []
    for conversation in rng.sample(list(conversations), len(conversations)):
        if len(chosen) == count:
            break
        beginnings = [conversation.messages[: turn + 1] for turn, _ in conversation.turns("assistant")]
        rng.shuffle(beginnings)
        short_enough = (b for b in beginnings if len(encode(tokenizer, b[:-1], add_generation_prompt=True)) <= room)
        chosen += islice(short_enough, 1)
    return chosen


def measure(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[Json]],
    max_new_tokens: int,
    seed: int,
) -> Json:
    """For greedy and for sampled replies the figures of `figures_of`, and the `texts`; why there are none in
    `left_out`."""
    if not {IM_START, IM_END} <= set(tokenizer.get_vocab()):  # it was never taught to end a turn so
        return {"left_out": "its tokenizer has no ChatML tokens"}
    if has_own_template(tokenizer):
        return {"left_out": "its chat template is another than ChatML"}
    tokenizer.pad_token = tokenizer.pad_token or IM_END
    options: Json = {"max_new_tokens": max_new_tokens, "seed": seed, "batch_size": 32}
    found = {}
    for decoding in ("greedy", "sampled"):
        replies = generate_replies(model, tokenizer, prompts, greedy=decoding == "greedy", **options)
        figures = figures_of(replies, prompts, set(special_strings(tokenizer)))
        found[decoding] = figures | {"texts": [reply.text for reply in replies]}
    return found


def figures_of(replies: Sequence[Reply], prompts: Sequence[Sequence[Json]], special_ids: set[int]) -> Json:
    """Shares over replies, and lengths in tokens.

    `ended`: ends with `<|im_end|>`; `repeats`: holds a 4-gram of tokens twice; `distinct_1`, `distinct_2`: different
    words and pairs of words over all of them, in all replies together (Li et al. 2016); `leaks`: writes a role header
    or a control token; `echoes`: equals the user's last message; `empty`: says nothing. `intervals` holds the 95 %
    interval of each share.
    """
    count = len(replies)
    words = [reply.text.casefold().split() for reply in replies]
    counted = pd.DataFrame(
        {
            "ended": reply.ended,
            "repeats": 0 < _distinct([reply.token_ids], NGRAM) < 1,
            "leaks": not special_ids.isdisjoint(reply.token_ids) or bool(ROLE_HEADER.search(reply.text)),
            "echoes": folded(reply.text) == folded(prompt[-1]["content"]) != "",
            "empty": not reply.text.strip(),
        }
        for reply, prompt in zip(replies, prompts, strict=True)
    )
    shares = counted.mean().to_dict()
    return shares | {
        "replies": count,
        "median_tokens": float(median(len(reply.token_ids) for reply in replies)),
        "distinct_1": _distinct(words, 1),
        "distinct_2": _distinct(words, 2),
        "intervals": {name: wilson(share, count) for name, share in shares.items()},
    }


def wilson(share: float, count: int) -> list[float]:
    """The 95 % interval of a share of `count` independent replies (Wilson 1927), right at 0 and 1 too."""
    z = NormalDist().inv_cdf(0.975)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return [max(0.0, middle - half), min(1.0, middle + half)]


def _distinct(rows: Sequence[Sequence[Any]], n: int) -> float:
    """Different n-grams of all n-grams in the rows; 0 where there are none."""
    grams = [tuple(row[k : k + n]) for row in rows for k in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def sample_rows(model: Any, tokenizer: Any, max_new_tokens: int, seed: int) -> list[Json]:
    """Rows of `samples.jsonl`: the prompts answered alone, then the same ones in one conversation.

    Sampled as in the reference (temperature 0.75, top-p 0.9, repetition penalty 1.2). The first sample is the one
    shown; nothing is drawn twice. A conversation that outgrows the model loses its oldest turns, as a chat does.
    """
    options: Json = {"max_new_tokens": max_new_tokens, "greedy": False, "seed": seed}
    asked = [{"role": "user", "content": prompt} for prompt in PROMPTS]
    alone = generate_replies(model, tokenizer, [[message] for message in asked], **options)
    talked: list[Reply] = []
    messages: list[dict[str, str]] = []
    room = context_length(model.config) - max_new_tokens
    for message in asked:
        messages.append(message)
        while len(messages) > 1 and len(encode(tokenizer, messages, add_generation_prompt=True)) > room:
            messages = messages[2:]
        talked += generate_replies(model, tokenizer, [messages], **options)
        messages.append({"role": "assistant", "content": talked[-1].text})
    return [
        {"mode": mode, "turn": turn, "prompt": PROMPTS[turn], "reply": reply.text,
         "ended": reply.ended, "tokens": len(reply.token_ids)}
        for mode, replies in (("alone", alone), ("conversation", talked))
        for turn, reply in enumerate(replies)
    ]  # fmt: skip
