"""What training did to the three control tokens: the size of their embedding rows and the odds of `<|im_end|>`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from nbutils.core.chatml import IM_END, IM_START, PAD
from nbutils.core.models import load_model
from nbutils.train.dataset import TokenRows


@torch.no_grad()
def control_token_report(folder: Path, rows: TokenRows, conversations: int = 8) -> dict[str, float]:
    """Norm of each control token's output row, and the mean probability of `<|im_end|>` where a reply really ends.

    Averaged over the ends of all replies of the first `conversations` evaluation rows.
    """
    tokenizer, model = AutoTokenizer.from_pretrained(folder), load_model(str(folder)).eval()
    weight = model.get_output_embeddings().weight
    report: dict[str, float] = {
        f"norm of {token}": weight[tokenizer.convert_tokens_to_ids(token)].norm().item()
        for token in (IM_START, IM_END, PAD)
    }
    report["norm of all rows, mean"] = weight.norm(dim=1).mean().item()
    end = tokenizer.convert_tokens_to_ids(IM_END)
    odds: list[Any] = []
    for row in range(min(conversations, len(rows))):
        batch = rows.tensors(np.array([row]))
        logits = model(input_ids=batch["input_ids"]).logits[0, :-1].float()  # (T-1, V)
        odds += logits[batch["labels"][0, 1:] == end].softmax(dim=-1)[:, end].tolist()
    report[f"probability of {IM_END} at the end of a reply"] = sum(odds) / max(1, len(odds))
    return report
