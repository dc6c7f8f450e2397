"""What is measured of a model: its exact loss on each row, its replies to fixed prompts, how surely it ends them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from datasets import load_from_disk
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nbutils.core.chat_engine.generation import generate_replies
from nbutils.core.chatml import IM_END
from nbutils.core.files import Json, replaced
from nbutils.core.run.models import ModelRef
from nbutils.train.batches import blocks_of
from nbutils.train.dataset import TokenRows
from nbutils.train.loss import causal_lm_loss

NEW_TOKENS = 60
"""Length of a sample reply, at most."""
REPORTED_ROWS = 8
"""Evaluation rows in which the ends of replies are looked at."""


HELDOUT = pa.schema(
    {"source": pa.string(), "index": pa.int64(), "loss_sum": pa.float64(), "tokens": pa.int64()},
    metadata={"schema": "1"},
)
"""Of `heldout.parquet`: the row as the ledger names it, the loss in nats summed over its tokens, and how many count."""


class ExactLoss(NamedTuple):
    """A model's loss on a set of rows."""

    sums: np.ndarray
    """Loss of each row in nats, summed over its supervised tokens, (rows,) float64."""
    tokens: np.ndarray
    """Supervised tokens of each row, (rows,)."""
    correct: float
    """Supervised tokens that have the highest probability."""

    @property
    def mean(self) -> float:
        """In nats a supervised token."""
        return float(self.sums.sum()) / max(int(self.tokens.sum()), 1)

    def facts(self) -> dict[str, float]:
        """What is logged of it."""
        count = int(self.tokens.sum())
        return {
            "eval_loss": self.mean,
            "eval_token_accuracy": self.correct / max(count, 1),
            "supervised_tokens": count,
        }

    def save(self, path: Path, held_out: Path) -> None:
        """Writes what each row of the folder `held_out` has; nothing where its rows do not say where they come from."""
        rows = load_from_disk(str(held_out)).with_format("arrow")
        names = HELDOUT.names[:2]
        if {*names} <= {*rows.column_names}:
            named = rows.select_columns(names)[:].select(names).columns
            with replaced(path) as partial:
                pq.write_table(pa.table([*named, self.sums, self.tokens], schema=HELDOUT), partial)


@torch.no_grad()
def exact_loss(model: PreTrainedModel, rows: TokenRows, budget: int) -> ExactLoss:
    """The loss on all rows.

    Each row's is summed in float64 and exchanged once; every row counts once whatever the budget (padded tokens a
    micro-batch) and the number of processes. All ranks must call it. The model is left in evaluation mode.
    """
    state, device = PartialState(), next(model.parameters()).device
    lengths = rows.lengths()
    order = np.argsort(lengths, kind="stable")
    batches = [order[a:b] for a, b in pairwise(blocks_of(lengths[order], budget))]
    mine, counts = batches[state.process_index :: state.num_processes], rows.supervised_counts()
    model.eval()
    losses, hits = [torch.zeros(0, device=device)], torch.zeros((), dtype=torch.float64, device=device)
    for batch in mine:
        _, correct, each = causal_lm_loss(model, *rows.tensors(batch).to(device))
        losses.append(each)
        hits += correct
    read = np.concatenate([order[:0], *mine])  # whose tokens these are, in order
    sums = np.bincount(np.repeat(read, counts[read]), torch.cat(losses).cpu().double(), minlength=len(rows))
    *found, correct_sum = reduce(torch.tensor([*sums, hits], dtype=torch.float64, device=device), "sum").tolist()
    return ExactLoss(np.array(found), counts, correct_sum)


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
        ids, positions, targets = rows.tensors(np.array([row]))
        logits = model(input_ids=ids).logits[0].float()  # (T, V)
        odds += logits[positions[targets == end]].softmax(dim=-1)[:, end].tolist()
    return sum(odds) / max(1, len(odds))
