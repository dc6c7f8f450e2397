"""Replies to many conversations at once, for sample texts in training and evaluation.

A person's chat is served by `nbutils.core.chat_engine.engine`, which streams and keeps its key/value cache; here
transformers' own `generate` answers left-padded batches and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbutils.core.chat_engine.sampling import Sampling
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
    seed: int = 0,
    batch_size: int = 16,
) -> list[Reply]:
    """The assistant's next message in each conversation, at most `max_new_tokens` tokens long, in the order given.

    Conversations of similar length share a batch of `batch_size` rows. Replies are sampled as in the reference; greedy
    ones have no repetition penalty, since they are to show the model as it is. Greedy replies do not depend on
    `batch_size`; sampled ones are the same for the same seed and the same batches. The model's training mode and
    torch's random state are left as they were. Prompt and reply together should fit the model's context
    (`nbutils.core.run.models.context_length`); nothing is cut here.
    """
    import torch

    sampling = Sampling(greedy=greedy, max_new_tokens=max_new_tokens)
    if greedy:
        sampling = sampling.changed(repetition_penalty=1.0)
    prompts = [e.input_ids for e in encode_batch(tokenizer, conversations, add_generation_prompt=True)]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies: dict[int, Reply] = {}
    was_training = model.training
    cuda = [model.device.index or 0] if model.device.type == "cuda" else []
    model.eval()
    try:
        with torch.random.fork_rng(devices=cuda), torch.inference_mode():
            torch.manual_seed(seed)
            for start in range(0, len(prompts), batch_size):
                rows = by_length[start : start + batch_size]
                generated = _generate(model, tokenizer, [prompts[i] for i in rows], sampling.generation_config())
                replies |= dict(zip(rows, (_reply(tokenizer, ids) for ids in generated), strict=True))
    finally:
        model.train(was_training)
    return [replies[i] for i in range(len(prompts))]


def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], options: dict[str, Any]
) -> list[list[int]]:
    """New ids of each prompt, through `model.generate` on one left-padded batch (B, T)."""
    from transformers import GenerationConfig

    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    config = GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(IM_END), pad_token_id=tokenizer.pad_token_id, **options
    )
    out = model.generate(batch.input_ids, attention_mask=batch.attention_mask, generation_config=config)
    new: list[list[int]] = out[:, batch.input_ids.shape[1] :].tolist()
    return new


def _reply(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Reply:
    end = tokenizer.convert_tokens_to_ids(IM_END)
    ended = end in ids
    kept = ids[: ids.index(end)] if ended else ids
    return Reply(tokenizer.decode(kept, skip_special_tokens=True).strip(), kept, ended)
