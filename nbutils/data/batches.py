"""Batches of numbered rows, in a form that travels to a worker process with no more than it has to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

BATCH_ROWS = 500
"""Rows that one call of the batch function gets: enough to keep the tokenizer busy, few enough to stay small."""
BATCH_BYTES = 16 * 2**20
"""The same limit in bytes: one row can be long."""


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a source: the number of the first, and a picklable call that reads them."""

    start: int
    read: Callable[[], pa.Table]


class InMemory:
    """Reads rows that are at hand already; travels as the rows alone, without the table that they are a slice of."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __call__(self) -> pa.Table:
        """The rows."""
        return self.table

    def __reduce__(self) -> tuple[Callable[[bytes], InMemory], tuple[bytes]]:
        return _unpacked, (packed(self.table),)


def packed(table: pa.Table) -> bytes:
    """A table as bytes in Arrow's stream format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def unpacked(data: bytes) -> pa.Table:
    """The table that `packed` made bytes of."""
    return pa.ipc.open_stream(data).read_all()


def _unpacked(data: bytes) -> InMemory:
    return InMemory(unpacked(data))


def of_table(table: pa.Table) -> Iterator[Batch]:
    """A table in memory, batch by batch."""
    for start in range(0, table.num_rows, BATCH_ROWS):
        yield Batch(start, InMemory(table.slice(start, BATCH_ROWS)))
