"""What other limits on length would cost, in conversations and in tokens."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nbutils.core.encode_within import encode_within
from nbutils.data.fates import TOO_LONG
from nbutils.data.sampling import SampledRows
from nbutils.data.settings import DataSettings
from nbutils.data.work import SCHEMA

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIMITS = (512, 1024, 2048)
BARS = 16
"""Bars up to `max_length` in the histogram of lengths."""
AT_ONCE = 50
COUNTED_ROWS = 1_000
"""Over-long conversations that are counted to their end, for what lies above `max_length`."""


class LimitCosts:
    """Conversations and tokens above each limit, of all that are well formed.

    Up to `max_length` every conversation is counted. Above it reading stopped early: a uniform sample of the over-long
    conversations is counted to the end and stands for all of them.
    """

    def __init__(self, settings: DataSettings, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.max_length = settings.max_length
        self.tokenizer = tokenizer
        self.limits = sorted({*LIMITS, settings.max_length})
        self.rows_above = dict.fromkeys(self.limits, 0)  # of the conversations that fit max_length
        self.tokens_above = dict.fromkeys(self.limits, 0)
        self.rows = self.tokens = self.long_rows = 0
        schema = pa.schema([SCHEMA.field("hash"), SCHEMA.field("messages")])
        self.long = SampledRows(COUNTED_ROWS, settings.split_seed, schema, folder / ".limits.partial.arrows")

    def add(self, result: pa.Table) -> None:
        """Counts one result of the batch function."""
        well_formed = result.filter(pc.is_valid(result["tokens"]))
        is_long = pc.equal(well_formed["fate"], TOO_LONG)
        long = well_formed.filter(is_long)
        self.long_rows += long.num_rows
        self.long.offer(long)
        lengths = well_formed.filter(pc.invert(is_long))["tokens"].to_numpy()
        self.rows += len(lengths)
        self.tokens += int(lengths.sum())
        for limit in self.limits:
            self.rows_above[limit] += int((lengths > limit).sum())
            self.tokens_above[limit] += int(lengths[lengths > limit].sum())

    def found(self) -> dict[str, Any]:
        """`limits`: what each would drop; `long_lengths`: how long the over-long conversations that were counted are.

        Shares of tokens are estimates wherever not every over-long conversation was counted to its end: how much the
        rest holds is then known from the sample alone.
        """
        counted = np.array(list(self._counted()), np.int64)
        each = self.long_rows / max(1, len(counted))  # over-long conversations that one counted stands for
        all_tokens = self.tokens + each * int(counted.sum())
        sampled = len(counted) < self.long_rows
        limits = []
        for limit in self.limits:
            above = counted[counted > limit]
            exact = limit <= self.max_length
            rows_above = self.rows_above[limit] + (self.long_rows if exact else each * len(above))
            tokens_above = self.tokens_above[limit] + each * int(above.sum())
            limits.append(
                {
                    "limit": limit,
                    "share_of_rows": rows_above / max(1, self.rows + self.long_rows),
                    "share_of_tokens": tokens_above / max(1.0, all_tokens),
                    "rows_estimated": sampled and not exact,
                    "tokens_estimated": sampled,
                }
            )
        width = self.max_length / BARS
        edges = self.max_length + width * np.arange(2 * BARS + 1)
        inside = np.histogram(counted, edges)[0].tolist()
        histogram = {
            "counted": len(counted),
            "of": self.long_rows,
            "bin_tokens": width,
            "rows": inside,
            "rows_beyond": len(counted) - sum(inside),
        }
        return {"limits": limits, "long_lengths": histogram}

    def _counted(self) -> Iterator[int]:
        rows = (row["messages"][0].as_py() for row in self.long.finish())
        while group := list(islice(rows, AT_ONCE)):
            yield from (measured.tokens for measured in encode_within(self.tokenizer, group, sys.maxsize))
