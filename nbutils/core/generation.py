"""Replies to many conversations at once, for sample texts in training and evaluation.

A person's chat is served by `nbutils.core.session`, which streams and keeps its key/value cache; here transformers'
own `generate` answers left-padded batches and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbutils.core.chatml import IM_END, Message, encode_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Reply:
    """One reply: its text, its token ids without `<|im_end|>`, and whether the model ended it with `<|im_end|>`."""

    text: str
    token_ids: list[int]
    ended: bool


def generate_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    greedy: bool = True,
    temperature: float = 0.75,
    top_p: float = 0.9,
    repetition_penalty: float | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> list[Reply]:
    """The assistant's next message in each conversation, at most `max_new_tokens` tokens long, in the order given.

    Conversations of similar length share a batch of `batch_size` rows. The repetition penalty is off (1.0) for greedy
    decoding, where replies are to show the model as it is, and 1.2 for sampling, as in the reference; a number given
    holds for both. Greedy replies do not depend on `batch_size`; sampled ones are the same for the same seed and the
    same batches. The model's training mode and torch's random state are left as they were. Prompt and reply together
    should fit the model's context (`nbutils.core.models.context_length`); nothing is cut here.
    """
    import torch

    prompts = [e.input_ids for e in encode_batch(tokenizer, conversations, add_generation_prompt=True)]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies: dict[int, Reply] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=_cuda_index(model)), torch.inference_mode():
            torch.manual_seed(seed)
            for start in range(0, len(prompts), batch_size):
                rows = by_length[start : start + batch_size]
                generated = _generate(
                    model,
                    tokenizer,
                    [prompts[i] for i in rows],
                    max_new_tokens=max_new_tokens,
                    repetition_penalty=repetition_penalty or (1.0 if greedy else 1.2),
                    **({"do_sample": False} if greedy else _sampling(temperature, top_p)),
                )
                replies |= dict(zip(rows, (_reply(tokenizer, ids) for ids in generated), strict=True))
    finally:
        model.train(was_training)
    return [replies[i] for i in range(len(prompts))]


def _sampling(temperature: float, top_p: float) -> dict[str, object]:
    return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}


def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], **options: object
) -> list[list[int]]:
    """New ids of each prompt, through `model.generate` on one left-padded batch (B, T)."""
    import torch
    from transformers import GenerationConfig

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    config = GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(IM_END), pad_token_id=tokenizer.pad_token_id, **options
    )
    out = model.generate(ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config)
    new: list[list[int]] = out[:, width:].tolist()
    return new


def _reply(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Reply:
    end = tokenizer.convert_tokens_to_ids(IM_END)
    ended = end in ids
    kept = ids[: ids.index(end)] if ended else ids
    return Reply(tokenizer.decode(kept, skip_special_tokens=True).strip(), kept, ended)


def _cuda_index(model: PreTrainedModel) -> list[int]:
    return [model.device.index or 0] if model.device.type == "cuda" else []
