"""Runs the batch function over every source, decides duplicates in row order, and writes what comes out."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from nbutils.core.files import replaced, write_json
from nbutils.data.fates import DUPLICATE, KEPT, TOO_LONG
from nbutils.data.limits import LimitCosts
from nbutils.data.parallel import in_order, processes_for
from nbutils.data.rows import RowSet, encoded_whole
from nbutils.data.samples import DropSamples
from nbutils.data.sampling import SampledRows
from nbutils.data.settings import DataSettings
from nbutils.data.sources import Source
from nbutils.data.tally import Tally
from nbutils.data.work import LEDGER, LEDGER_SCHEMA, SCHEMA, RowWork, loaded_tokenizer

WRITTEN = ("train", "eval", "too_long", "ledger.parquet", "summary.json", "samples.json", "figures")
"""What this stage makes besides the tokenizer and the contamination index."""
TOO_LONG_ROWS = 200
"""Whole over-long conversations of the eval side that are kept for the context curve."""


def row_work(settings: DataSettings, source: Source, folder: Path) -> RowWork:
    """The batch function for one source; `folder` is the stage's."""
    index = folder / "contamination"
    return RowWork(
        source=source.label,
        shape=source.shape.name,
        fraction=source.spec.fraction,
        draw=source.spec.draw,
        tokenizer_folder=str(folder / "tokenizer"),
        max_length=settings.max_length,
        split_seed=settings.split_seed,
        eval_fraction=settings.eval_fraction,
        contamination_folder=str(index) if settings.contamination_tasks else "",
    )


@dataclass(frozen=True)
class Filtered:
    """What a pass over all sources found: facts for the summary, rows read and taken by source, the limits' costs."""

    facts: dict[str, Any]
    read: dict[str, int]
    taken: dict[str, int]
    costs: LimitCosts


def filter_sources(settings: DataSettings, sources: Sequence[Source], folder: Path) -> Filtered:
    """Train and eval sets, over-long conversations, samples and the ledger, below `folder`.

    Memory holds one hash for each conversation and a bounded number of batches, whatever the sources' size.
    """
    clear(folder)
    sets = {name: RowSet(folder / name) for name in ("train", "eval", "too_long")}
    tokenizer = loaded_tokenizer(str(folder / "tokenizer"))
    costs = LimitCosts(settings, folder, tokenizer)
    long_rows = SampledRows(TOO_LONG_ROWS, settings.split_seed, SCHEMA, folder / ".too_long.partial.arrows")
    samples, tally, seen = DropSamples(settings.seed), Tally(), FirstSeen()
    with replaced(folder / "ledger.parquet") as partial, ExitStack() as stack:
        ledger = stack.enter_context(pq.ParquetWriter(partial, LEDGER_SCHEMA))
        for source, read, result in results(settings, sources, folder):
            result = seen.marked(result)
            ledger.write_table(result.select(LEDGER).replace_schema_metadata(LEDGER_SCHEMA.metadata))
            tally.add(source.label, read, result)
            costs.add(result)
            samples.add(result)
            for side in ("train", "eval"):
                sets[side].add(_where(result, fate=KEPT, side=side))
            long_rows.offer(_where(result, fate=TOO_LONG, side="eval"))
    for rows in encoded_whole(tokenizer, long_rows.finish()):
        sets["too_long"].add(rows)
    write_json(folder / "samples.json", samples.found())
    facts = tally.found() | {name: rows.save() for name, rows in sets.items()}
    return Filtered(facts | {"eval_hash": sets["eval"].hexdigest()}, tally.read, tally.taken, costs)


def clear(folder: Path) -> None:
    """Removes what an interrupted run left behind, so that nothing old stands beside what is new."""
    for path in (*(folder / name for name in WRITTEN), *folder.glob(".*.partial*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def results(settings: DataSettings, sources: Sequence[Source], folder: Path) -> Iterator[tuple[Source, int, pa.Table]]:
    """The batch function's results in row order, each with the number of rows read; a progress bar for each source."""
    for source in sources:
        work = row_work(settings, source, folder)
        processes = processes_for(settings.data_processes, source.rows)
        label = f"{source.label} ({processes} process{'es' if processes > 1 else ''})"
        # Text on the standard output: it shows in Jupyter, in an executed notebook and in the pipeline's log alike.
        with tqdm(total=source.rows, desc=label, unit=" rows", mininterval=0.5, file=sys.stdout) as bar:
            for rows, result in in_order(work, source.batches(), processes):
                yield source, rows, result
                bar.update(rows)


class FirstSeen:
    """Which conversations were kept already, by their hashes."""

    def __init__(self) -> None:
        self.sources: dict[str, int] = {}
        self.first: dict[bytes, int] = {}  # hash → number of the source · 2^40 + row

    def marked(self, result: pa.Table) -> pa.Table:
        """The result with the fate `duplicate`, and where the first stands, for every row whose turns came before."""
        fates, details = result["fate"].to_pylist(), result["detail"].to_pylist()
        names = list(self.sources)
        for row, (fate, digest) in enumerate(zip(fates, result["hash"].to_pylist(), strict=True)):
            if not digest or fate == TOO_LONG:
                continue
            key = bytes.fromhex(digest)
            source = self.sources.setdefault(result["source"][row].as_py(), len(self.sources))
            here = (source << 40) + result["index"][row].as_py()
            there = self.first.setdefault(key, here)
            if there != here:
                names = list(self.sources)
                fates[row], details[row] = DUPLICATE, f"same as {names[there >> 40]} row {there & (1 << 40) - 1}"
        return _replaced(_replaced(result, "fate", fates), "detail", details)


def _replaced(table: pa.Table, name: str, values: list[str]) -> pa.Table:
    return table.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), pa.array(values, pa.string()))


def _where(table: pa.Table, **values: str) -> pa.Table:
    for name, value in values.items():
        table = table.filter(pc.equal(table[name], value))
    return table
