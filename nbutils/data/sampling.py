"""Bounded samples of a stream: which rows are kept follows from their keys, not from order or number of processes."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from nbutils.data.fates import uniform


class Smallest:
    """The `size` keys with the smallest random numbers of all offered: a uniform sample without repetition."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.heap: list[tuple[float, str]] = []  # largest number first, by its negative
        self.keys: set[str] = set()

    def offer(self, key: str) -> bool:
        """Whether the key belongs to the sample as far as is known by now."""
        number = uniform(f"sample {key}", self.seed)  # not the number that decides the key's side
        if key in self.keys or (len(self.heap) == self.size and number >= -self.heap[0][0]):
            return False
        self.keys.add(key)
        heapq.heappush(self.heap, (-number, key))
        if len(self.heap) > self.size:
            self.keys.remove(heapq.heappop(self.heap)[1])
        return True


class SampledRows:
    """A sample of rows by their `hash`, in a temporary file: memory holds the keys alone, for rows may be long."""

    def __init__(self, size: int, seed: int, schema: pa.Schema, file: Path) -> None:
        self.sample = Smallest(size, seed)
        self.schema = schema
        self.file = file
        self.writer = pa.ipc.new_stream(str(file), schema)

    def offer(self, rows: pa.Table) -> None:
        """Takes those of the rows that belong to the sample as far as is known by now."""
        taken = [self.sample.offer(key) for key in rows["hash"].to_pylist()]
        if any(taken):
            self.writer.write_table(rows.select(self.schema.names).filter(pa.array(taken)).cast(self.schema))

    def finish(self) -> Iterator[pa.RecordBatch]:
        """The sample in row order, one row at a time; the file is removed."""
        self.writer.close()
        left = set(self.sample.keys)
        with pa.OSFile(str(self.file)) as file:
            for batch in pa.ipc.open_stream(file):
                for row, key in enumerate(batch["hash"].to_pylist()):
                    if key in left:
                        left.remove(key)
                        yield batch.slice(row, 1)
        self.file.unlink()
