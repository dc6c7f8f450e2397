"""Runs the batch function over batches in this process or in several, and gives the results in the order of rows.

`Dataset.map` would do the same work, but it hands results back only when a whole source is done, through a second
copy on the disk. Here they come as they are made: duplicates are decided and sets written in one pass.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pyarrow as pa

from nbutils.core.errors import UserError
from nbutils.core.torchrun import end_with
from nbutils.data.batches import Batch
from nbutils.data.work import RowWork, loaded_tokenizer

ROWS_PER_PROCESS = 2_000
"""Below this many rows for each, a further process takes longer to start than it saves."""
WAITING = 3
"""Batches under way for each process: enough that none waits, few enough that memory stays flat."""

Result = tuple[int, pa.Table]
"""Rows read, and what became of those taken."""


def processes_for(asked: int, rows: int | None) -> int:
    """Number of processes: as asked, or one for each core this process may use, fewer for few rows."""
    if asked:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if rows is None else max(1, min(cores, rows // ROWS_PER_PROCESS))


def run(work: RowWork, batch: Batch) -> Result:
    """Reads one batch and does its work."""
    table = batch.read()
    return table.num_rows, work(table, batch.start)


def in_order(work: RowWork, batches: Iterable[Batch], processes: int) -> Iterator[Result]:
    """The results of all batches, first to last. UserError where a worker process is killed (mostly for memory)."""
    if processes == 1:
        for batch in batches:
            yield run(work, batch)
        return
    loaded_tokenizer(work.tokenizer_folder)  # a forked worker inherits it
    pool = ProcessPoolExecutor(processes, initializer=_start_worker)
    waiting: deque[Future[Result]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(run, work, batch))
            if len(waiting) >= WAITING * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            f"A worker process was killed while reading {work.source}, most likely because memory ran out; "
            "run again with a smaller data_processes."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        end_with(parent.pid)
