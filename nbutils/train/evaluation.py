"""What is measured of a model: its exact loss, its replies to fixed prompts, and how surely it ends them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nbutils.core.chat_engine.generation import generate_replies
from nbutils.core.chatml import IM_END
from nbutils.core.files import Json
from nbutils.core.run.models import ModelRef
from nbutils.train.batches import blocks_of
from nbutils.train.dataset import TokenRows
from nbutils.train.loss import causal_lm_loss

NEW_TOKENS = 60
"""Length of a sample reply, at most."""
REPORTED_ROWS = 8
"""Evaluation rows in which the ends of replies are looked at."""


@torch.no_grad()
def exact_loss(model: PreTrainedModel, rows: TokenRows, budget: int) -> dict[str, float]:
    """Mean loss in nats a supervised token, and top-1 accuracy, over all rows.

    Sums are kept in float64 and reduced once; every row counts once whatever the budget (padded tokens a micro-batch)
    and the number of processes. All ranks must call it. The model is left in evaluation mode.
    """
    state, device = PartialState(), next(model.parameters()).device
    lengths = rows.lengths()
    order = np.argsort(lengths, kind="stable")
    batches = [order[a:b] for a, b in pairwise(blocks_of(lengths[order], budget))]
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    model.eval()
    for batch in batches[state.process_index :: state.num_processes]:
        loss, correct = causal_lm_loss(model, *rows.tensors(batch).to(device))
        sums += torch.stack([loss.double(), correct.double()])
    loss_sum, correct_sum = reduce(sums, "sum").tolist()
    count = int(rows.supervised_counts().sum())
    return {
        "eval_loss": loss_sum / max(count, 1),
        "eval_token_accuracy": correct_sum / max(count, 1),
        "supervised_tokens": count,
    }


def sample_replies(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[Json]:
    """Greedy replies of at most 60 tokens, one a prompt, and whether each ended by itself."""
    if not prompts:
        return []
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    replies = generate_replies(model, tokenizer, conversations, max_new_tokens=NEW_TOKENS)
    return [
        {"prompt": prompt, "reply": reply.text, "ended": reply.ended}
        for prompt, reply in zip(prompts, replies, strict=True)
    ]


@torch.no_grad()
def end_probability(folder: Path, rows: TokenRows) -> float:
    """The mean probability of `<|im_end|>` where a reply really ends, over the first evaluation rows."""
    ref = ModelRef.parse(str(folder))
    model, end = ref.load().eval(), ref.raw_tokenizer().convert_tokens_to_ids(IM_END)
    odds: list[float] = []
    for row in range(min(REPORTED_ROWS, len(rows))):
        ids, labels = rows.tensors(np.array([row]))
        logits = model(input_ids=ids).logits[0, :-1].float()  # (T-1, V)
        odds += logits[labels[0, 1:] == end].softmax(dim=-1)[:, end].tolist()
    return sum(odds) / max(1, len(odds))
