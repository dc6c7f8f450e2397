"""Replies to many conversations at once, for sample texts in training and evaluation.

A person's chat is served by `nbutils.core.chat_engine.engine`, which streams and keeps its key/value cache; here
transformers' own `generate` answers left-padded batches and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from nbutils.core.chat_engine.sampling import Sampling
from nbutils.core.chatml import IM_END, Conversation, encode_batch
from nbutils.core.vocabulary import readable

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
    conversations: Sequence[Conversation],
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
    from transformers import GenerationConfig

    sampling = Sampling(greedy=greedy, max_new_tokens=max_new_tokens)
    if greedy:
        sampling = sampling.changed(repetition_penalty=1.0)
    end = tokenizer.convert_tokens_to_ids(IM_END)
    config = GenerationConfig(eos_token_id=end, pad_token_id=tokenizer.pad_token_id, **sampling.generation_config())
    prompts = [e.input_ids for e in encode_batch(tokenizer, conversations, add_generation_prompt=True)]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies: dict[int, Reply] = {}
    was_training = model.training
    cuda = [model.device] if model.device.type == "cuda" else []
    model.eval()
    try:
        with torch.random.fork_rng(devices=cuda), torch.inference_mode():
            torch.manual_seed(seed)
            for start in range(0, len(prompts), batch_size):
                rows = by_length[start : start + batch_size]
                batch = tokenizer.pad(  # (B, T)
                    {"input_ids": [prompts[i] for i in rows]}, padding_side="left", return_tensors="pt"
                ).to(model.device)
                out = model.generate(batch.input_ids, attention_mask=batch.attention_mask, generation_config=config)
                new = out[:, batch.input_ids.shape[1] :].tolist()
                for row, ids in zip(rows, new, strict=True):
                    kept = list(takewhile(lambda i: i != end, ids))
                    text = readable(tokenizer, tokenizer.decode(kept, skip_special_tokens=True)).strip()
                    replies[row] = Reply(text, kept, ended=end in ids)
    finally:
        model.train(was_training)
    return [replies[i] for i in range(len(prompts))]
