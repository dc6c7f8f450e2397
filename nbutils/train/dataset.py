"""The tokenised rows that training and evaluation read, and the tensors made from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, load_from_disk

from nbutils.core.chatml import IM_END
from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.train.loss import IGNORED
from nbutils.train.settings import TrainSettings


class Microbatch(NamedTuple):
    """Right-padded rows: token ids and labels, both (B, T) int64, padded with 0 and -100."""

    input_ids: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class TokenRows:
    """Tokenised conversations with labels; arrays are views of the Arrow file, nothing is held in memory."""

    rows: Dataset
    supervise: str
    end_id: int | None
    """With an id, `<|im_end|>` carries no label (the 'replies never stop' experiment)."""

    @classmethod
    def load(cls, folder: Path, supervise: str, unsupervised_end: int | None = None) -> TokenRows:
        """Rows of a folder that the data stage wrote. UserError where there are none."""
        if not folder.is_dir():
            raise UserError(f"{shown(folder)} does not exist; run notebooks/01_filter_data.ipynb first.")
        rows = load_from_disk(str(folder)).select_columns(["input_ids", "supervised"]).with_format("numpy")
        if len(rows) == 0:
            raise UserError(f"{shown(folder)} holds no conversation; see data/ledger.parquet for why each was dropped.")
        return cls(rows, supervise, unsupervised_end)

    @classmethod
    def for_training(cls, data: Path, settings: TrainSettings, tokenizer: Any) -> TokenRows:
        """The training rows in the data stage's folder, with the labels that the settings ask for."""
        end = None if settings.supervise_end else tokenizer.convert_tokens_to_ids(IM_END)
        return cls.load(data / "train", settings.supervise, end)

    def counting(self, supervise: str) -> TokenRows:
        """The same rows with labels on `assistant` texts or on `all` tokens."""
        return replace(self, supervise=supervise)

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self) -> np.ndarray:
        """Tokens of each row, (rows,)."""
        column = self.rows.data.column("input_ids")
        return np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks])

    def supervised_counts(self, token: int | None = None) -> np.ndarray:
        """Labels of each row that the loss counts, (rows,), or only those that are `token`.

        The first token is never predicted.
        """
        table = self.rows.data
        counts = []
        for ids, mask in zip(table.column("input_ids").chunks, table.column("supervised").chunks, strict=True):
            flat = ids.flatten().to_numpy().astype(np.int64)
            labels = self._labels(flat, mask.flatten().to_numpy(zero_copy_only=False))
            ends = np.cumsum(np.diff(ids.offsets.to_numpy()))
            labels[np.concatenate([[0], ends[:-1]])] = IGNORED
            counted = labels != IGNORED if token is None else labels == token
            totals = np.concatenate([[0], np.cumsum(counted)])[ends]
            counts.append(np.diff(totals, prepend=0))
        return np.concatenate(counts)

    def largest_id(self) -> int:
        """The largest token id of all rows."""
        return max(
            int(chunk.flatten().to_numpy().max(initial=0)) for chunk in self.rows.data.column("input_ids").chunks
        )

    def tensors(self, rows: np.ndarray) -> Microbatch:
        """One micro-batch of these row numbers."""
        picked = [self.rows[int(row)] for row in rows]
        longest = max(len(row["input_ids"]) for row in picked)
        ids = np.zeros((len(picked), longest), dtype=np.int64)
        labels = np.full((len(picked), longest), IGNORED, dtype=np.int64)
        for i, row in enumerate(picked):
            length = len(row["input_ids"])
            ids[i, :length] = row["input_ids"]
            labels[i, :length] = self._labels(row["input_ids"].astype(np.int64), row["supervised"].astype(bool))
        return Microbatch(torch.from_numpy(ids), torch.from_numpy(labels))

    def _labels(self, ids: np.ndarray, supervised: np.ndarray) -> np.ndarray:
        counted = supervised if self.supervise == "assistant" else np.ones(len(ids), dtype=bool)
        if self.end_id is not None:
            counted = counted & (ids != self.end_id)
        return np.where(counted, ids, IGNORED)


def empty_microbatch() -> Microbatch:
    """What a rank without rows in a step computes, so that it takes part in the gradient exchange: zero labels."""
    ids = torch.zeros((1, 2), dtype=torch.int64)
    return Microbatch(ids, torch.full_like(ids, IGNORED))
