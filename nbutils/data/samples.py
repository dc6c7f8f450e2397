"""Bounded samples of a stream: which rows are taken follows from their keys, not from order or number of processes."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from nbutils.core.encode_within import Measured, encode_within
from nbutils.data.fates import KEPT, REASONS, uniform
from nbutils.data.row_filter import SCHEMA

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AT_ONCE = 50
"""Over-long conversations encoded together."""
PER_REASON = 3
SHOWN_CHARACTERS = 160
SHOWN_MESSAGES = 4


class Sample:
    """The `size` keys with the smallest random numbers of all offered: a uniform sample without repetition."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.heap: list[tuple[float, str]] = []  # largest number first, by its negative
        self.found: dict[str, dict[str, Any]] = {}

    def offer(self, key: str) -> dict[str, Any] | None:
        """An empty place for what is to be kept of the key; None where it does not belong to the sample."""
        number = uniform(f"sample {key}", self.seed)  # not the number that decides the key's side
        if key in self.found or (len(self.heap) == self.size and number >= -self.heap[0][0]):
            return None
        place = self.found[key] = {}
        heapq.heappush(self.heap, (-number, key))
        if len(self.heap) > self.size:
            del self.found[heapq.heappop(self.heap)[1]]
        return place


class LongRows:
    """A sample of over-long conversations, in a temporary file: memory holds their hashes alone."""

    def __init__(self, size: int, seed: int, file: Path) -> None:
        self.sample = Sample(size, seed)
        self.file = file
        self.writer = pa.ipc.new_stream(str(file), SCHEMA)

    def add(self, rows: pa.Table) -> None:
        """Takes those of the rows that belong to the sample as far as is known by now."""
        taken = [self.sample.offer(key) is not None for key in rows["hash"].to_pylist()]
        if any(taken):
            self.writer.write_table(rows.filter(pa.array(taken)))

    def read_whole(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[dict[str, Any], Measured]]:
        """The sample in row order, each conversation encoded to its end; the file is removed."""
        self.writer.close()
        rows = self._rows()
        while group := list(islice(rows, AT_ONCE)):
            yield from zip(
                group, encode_within(tokenizer, [row["messages"] for row in group], sys.maxsize), strict=True
            )
        self.file.unlink()

    def _rows(self) -> Iterator[dict[str, Any]]:
        with pa.OSFile(str(self.file)) as file:
            for batch in pa.ipc.open_stream(file):
                for row, key in enumerate(batch["hash"].to_pylist()):
                    if key in self.sample.found:  # else it was taken, and later given up for another
                        yield batch.slice(row, 1).to_pylist()[0]


class DropSamples:
    """Three dropped rows for each reason, picked by `seed`, with the beginning of their text."""

    def __init__(self, seed: int) -> None:
        self.samples = {reason: Sample(PER_REASON, seed) for reason in REASONS}

    def add(self, rows: pa.Table) -> None:
        """Looks at the dropped ones of the rows."""
        dropped = rows.select(["source", "index", "detail", "fate", "messages"])
        dropped = dropped.filter(pc.not_equal(dropped["fate"], KEPT))
        for number, row in enumerate(dropped.drop_columns(["messages"]).to_pylist()):
            place = self.samples[row.pop("fate")].offer(f"{row['source']} row {row['index']}")
            if place is not None:
                place.update(row, text=_beginning(dropped["messages"][number].as_py()))

    def found(self) -> dict[str, list[dict[str, Any]]]:
        """Reason → rows, in the order in which reasons are looked for."""
        return {reason: list(sample.found.values()) for reason, sample in self.samples.items()}


def _beginning(messages: list[dict[str, str]]) -> str:
    lines = [f"{m['role']}: {_cut(' '.join(m['content'].split()))}" for m in messages[:SHOWN_MESSAGES]]
    more = len(messages) - SHOWN_MESSAGES
    return "\n".join(lines + ([f"… {more} more turns"] if more > 0 else []))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
