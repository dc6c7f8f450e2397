"""Sources of numbered rows in batches, and what a function makes of each batch, in this process or in several.

`Dataset.map` would do the same work, but it hands results back only when a whole source is done, through a second
copy on the disk. Here they come as they are made: duplicates are decided and sets written in one pass.
"""

from __future__ import annotations

import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from nbutils.core.errors import UserError
from nbutils.core.torchrun import end_with
from nbutils.data.settings import DatasetSpec
from nbutils.data.shapes import Shape

BATCH_ROWS = 1000
"""Rows that one call gets: enough to keep the tokenizer busy, few enough to stay small."""
WAITING = 3
"""Batches under way for each process: enough that none waits, few enough that memory stays flat."""

Result = tuple[int, pa.Table]
"""Rows read, and what became of those taken."""


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a source: the number of the first, and a picklable call that reads them."""

    start: int
    read: Callable[[], pa.Table]


@dataclass(frozen=True)
class Source:
    """A dataset that is open: how its rows are written, how many they are (None: not known yet), and its batches.

    `revision` is the commit of a hub dataset, `fingerprint` a hash of the content where there is one to take, `files`
    the names of the files that were picked from a folder here.
    """

    spec: DatasetSpec
    shape: Shape
    columns: list[str]
    rows: int | None
    batches: Callable[[], Iterator[Batch]]
    fingerprint: str = ""
    revision: str = ""
    files: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name of this source in the ledger."""
        return self.spec.label


def in_memory(tables: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[Batch]:
    """Rows that are at hand already; they travel as bytes, without the table that they may be a slice of."""
    start = 0
    for table in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write(table)
        yield Batch(start, partial(_unpacked, sink.getvalue().to_pybytes()))
        start += table.num_rows


def _unpacked(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()


def in_order(function: Callable[[pa.Table, int], pa.Table], source: Source, processes: int) -> Iterator[Result]:
    """The results of all batches, first to last. UserError where a worker process is killed (mostly for memory)."""
    if processes == 1:
        for batch in source.batches():
            yield _run(function, batch)
        return
    pool = ProcessPoolExecutor(processes, initializer=_start_worker)
    waiting = deque[Future[Result]]()
    try:
        for batch in source.batches():
            waiting.append(pool.submit(_run, function, batch))
            if len(waiting) >= WAITING * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            f"A worker process was killed while reading {source.label}, most likely because memory ran out; "
            "run again with a smaller data_processes."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run(function: Callable[[pa.Table, int], pa.Table], batch: Batch) -> Result:
    table = batch.read()
    gc.disable()  # a batch makes some hundred thousand objects and no cycles: to look for those takes a twentieth
    try:
        return table.num_rows, function(table, batch.start)
    finally:
        gc.enable()


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    end_with(os.getppid())
