"""The tokenised rows that training and evaluation read, and the tensors made from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset, load_from_disk
from torch.nn.utils.rnn import pad_sequence

from nbutils.core.chatml import IM_END
from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.train.settings import TrainSettings

COLUMNS = ("input_ids", "supervised", "context")
"""What is read of the data stage's rows; those of an earlier version say nothing of `context`."""


class Microbatch(NamedTuple):
    """Rows right-padded with 0, and what is to be predicted in them, row by row; all int64."""

    input_ids: torch.Tensor
    """(B, T)"""
    positions: torch.Tensor
    """Of the token before each supervised one in the flattened rows, (N,)."""
    targets: torch.Tensor
    """The supervised tokens, (N,)."""

    def to(self, device: torch.device) -> Microbatch:
        """The same on a device; a GPU queues the copies, and nobody waits for them."""
        tensors = [tensor.pin_memory() for tensor in self] if device.type == "cuda" else self
        return Microbatch(*(tensor.to(device, non_blocking=True) for tensor in tensors))


@dataclass(frozen=True)
class TokenRows:
    """Tokenised conversations with labels; arrays are views of the Arrow file, nothing is held in memory."""

    rows: Dataset
    supervise: str
    end_id: int | None
    """With an id, `<|im_end|>` carries no label (the 'replies never stop' experiment)."""
    few_shapes: bool = False
    """Whether tensors are a little wider than their longest row, so that there are few widths."""

    @classmethod
    def load(cls, folder: Path, supervise: str, unsupervised_end: int | None = None) -> TokenRows:
        """Rows of a folder that the data stage wrote. UserError where there are none."""
        if not folder.is_dir():
            raise UserError(f"{shown(folder)} does not exist; run notebooks/01_filter_data.ipynb first.")
        rows = load_from_disk(str(folder))
        rows = rows.select_columns([name for name in COLUMNS if name in rows.column_names])
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

    def on(self, device: torch.device) -> TokenRows:
        """The same rows for tensors that go to a device: a GPU's come in few shapes."""
        return replace(self, few_shapes=device.type == "cuda")

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self) -> np.ndarray:
        """Tokens of each row, (rows,)."""
        return pc.list_value_length(self.rows.data.column("input_ids")).to_numpy()

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.lengths().max())

    def width(self, longest: int) -> int:
        """Tokens of a row in a tensor whose longest row has so many.

        With few shapes the next multiple of 64, below 512 tokens of less (of 8 from 64 on), so that it is an eighth
        more at most; and never more than the longest row of all, which the model can surely read.
        """
        if not self.few_shapes:
            return longest
        multiple = min(64, max(1, 2 ** (longest.bit_length() - 1) // 8))
        return min(-(-longest // multiple) * multiple, self.longest)

    def supervised_counts(self, token: int | None = None) -> np.ndarray:
        """Labels of each row that the loss counts, (rows,), or only those that are `token`.

        The first token is never predicted.
        """
        counts = []
        for ids, *masks in zip(*(self.rows.data.column(name).chunks for name in self.rows.column_names), strict=True):
            flat = [mask.flatten().to_numpy(zero_copy_only=False) for mask in masks]
            flat_ids = ids.flatten().to_numpy()
            counted = self._counted(flat_ids, *flat) & (True if token is None else flat_ids == token)
            starts = ids.offsets.to_numpy()[:-1] - ids.offsets[0].as_py()
            counted[starts] = False
            counts.append(np.add.reduceat(counted, starts, dtype=np.int64))
        return np.concatenate(counts)

    def tensors(self, rows: np.ndarray) -> Microbatch:
        """One micro-batch of these row numbers."""
        columns = [self.rows.data.column(name) for name in self.rows.column_names]
        ids, *masks = ([part[int(row)].values.to_numpy(zero_copy_only=False) for row in rows] for part in columns)
        counted = [self._counted(*own) for own in zip(ids, *masks, strict=True)]
        width = self.width(max(map(len, ids)))
        padded = _padded([row.astype(np.int64) for row in ids], width)  # (B, T)
        row, before = _padded(counted, width)[:, 1:].nonzero(as_tuple=True)
        return Microbatch(padded, row * padded.shape[1] + before, padded[row, before + 1])

    def _counted(self, ids: np.ndarray, supervised: np.ndarray, context: np.ndarray | bool = False) -> np.ndarray:
        learnable = np.ones(len(ids), bool) & np.logical_not(context)
        counted = supervised if self.supervise == "assistant" else learnable
        if self.end_id is not None:
            counted = counted & (ids != self.end_id)
        return counted


def empty_microbatch() -> Microbatch:
    """What a rank without rows in a step computes, so that it takes part in the gradient exchange: zero labels."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return Microbatch(nothing.new_zeros(1, 2), nothing, nothing)


def _padded(rows: list[np.ndarray], width: int) -> torch.Tensor:
    padded = pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)
    return torch.nn.functional.pad(padded, (0, width - padded.shape[1]))
