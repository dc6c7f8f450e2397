"""Makes the tokenizer, filters every source row by row, decides duplicates in row order, and writes what comes out."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from nbutils.core.files import replaced, write_json
from nbutils.core.run.models import TINY, ModelRef, train_bpe
from nbutils.data.fates import DUPLICATE, KEPT, REASONS, TOO_LONG, opening_hash
from nbutils.data.row_batches import Source, in_order
from nbutils.data.row_filter import LEDGER_SCHEMA, SCHEMA, RowFilter, loaded_tokenizer
from nbutils.data.sets import RowSet, Sample, add_dropped, read_whole, shown, where
from nbutils.data.settings import DataSettings
from nbutils.data.summary import Filtered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WRITTEN = ("train", "eval", "too_long", "ledger.parquet", "summary.json", "samples.json", "figures")
"""What this stage makes besides the tokenizer and the contamination index."""
TOO_LONG_ROWS = 200
"""Whole over-long conversations of the eval side that are kept for the context curve."""
COUNTED_ROWS = 1_000
"""Over-long conversations that are counted to their end, for what lies above `max_length`."""
DROPS_SHOWN = 3
"""Dropped rows of each reason that are kept to look at."""
ROWS_PER_PROCESS = 2_000
"""Below this many rows for each, a further process takes longer to start than it saves."""


def make_tokenizer(settings: DataSettings, sources: Sequence[Source], folder: Path) -> PreTrainedTokenizerBase:
    """The run's tokenizer with ChatML added, saved as `tokenizer/` in the stage's folder."""
    if settings.base_model == TINY:
        tokenizer = train_bpe(train_texts(settings, sources))
    else:
        tokenizer = ModelRef.parse(settings.base_model, revision=settings.base_revision).tokenizer()
    with replaced(folder / "tokenizer") as partial:
        tokenizer.save_pretrained(partial)
    loaded_tokenizer.cache_clear()
    return tokenizer


def train_texts(settings: DataSettings, sources: Sequence[Source]) -> Iterator[str]:
    """Texts of all conversations on the train side, cleaned as the filter cleans them."""
    for source in sources:
        rows = RowFilter(source.spec, source.shape, settings, Path())
        for batch in source.batches():
            for judged in rows.judged(batch.read(), batch.start).values():
                if judged.fate == KEPT and rows.side(opening_hash(judged.turns)) == "train":
                    yield from (text for _, text in judged.turns)


def filter_sources(settings: DataSettings, sources: Sequence[Source], folder: Path) -> Filtered:
    """Train and eval sets, over-long conversations, samples and the ledger, below `folder`.

    Memory holds one hash for each conversation and a bounded number of batches, whatever the sources' size.
    """
    for path in (*(folder / name for name in WRITTEN), *folder.glob(".*.partial*")):  # what was left by another run
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    tokenizer = loaded_tokenizer(str(folder / "tokenizer"))  # forked workers inherit it
    sets = {name: RowSet(folder / name) for name in ("train", "eval", "too_long")}
    kept_long = Sample(TOO_LONG_ROWS, settings.split_seed)
    counted_long = Sample(COUNTED_ROWS, settings.split_seed)
    drops = {reason: Sample(DROPS_SHOWN, settings.seed) for reason in REASONS}
    first: dict[bytes, tuple[str, int]] = {}
    read = {source.label: 0 for source in sources}
    with replaced(folder / "ledger.parquet") as partial, pq.ParquetWriter(partial, LEDGER_SCHEMA) as ledger:
        for source, rows, result in results(settings, sources, folder):
            read[source.label] += rows
            result = duplicates_marked(result, source.label, first)
            ledger.write_table(result.select(LEDGER_SCHEMA.names).replace_schema_metadata(LEDGER_SCHEMA.metadata))
            add_dropped(drops, result)
            kept, long = where(result, "fate", KEPT), where(result, "fate", TOO_LONG)
            for side in ("train", "eval"):
                sets[side].add(where(kept, "side", side))
            counted_long.add(long.select(["messages"]), long["hash"].to_pylist())
            long = where(long, "side", "eval")
            kept_long.add(long, long["hash"].to_pylist())
    for row, whole in read_whole(kept_long.rows(), tokenizer):
        row |= {"tokens": whole.tokens, "supervised_tokens": whole.supervised} | vars(whole.encoding)
        sets["too_long"].add(pa.Table.from_pylist([row], schema=SCHEMA))
    write_json(folder / "samples.json", {reason: list(map(shown, drop.rows())) for reason, drop in drops.items()})
    facts = {name: rows.save() for name, rows in sets.items()}
    return Filtered(read, facts | {"eval_hash": sets["eval"].hexdigest()}, counted_long)


def results(settings: DataSettings, sources: Sequence[Source], folder: Path) -> Iterator[tuple[Source, int, pa.Table]]:
    """The row filter's results in row order, each with the number of rows read; a progress bar for each source."""
    for source in sources:
        filtered = RowFilter(source.spec, source.shape, settings, folder)
        processes = processes_for(settings.data_processes, source.rows)
        # Text on the standard output: it shows in Jupyter, in an executed notebook and in the pipeline's log alike.
        with tqdm(total=source.rows, desc=source.label, unit=" rows", mininterval=0.5, file=sys.stdout) as bar:
            for rows, result in in_order(filtered, source, processes):
                yield source, rows, result
                bar.update(rows)


def processes_for(asked: int, rows: int | None) -> int:
    """Number of processes: as asked, or one for each core, fewer for few rows."""
    cores = os.cpu_count() or 1
    return asked or (cores if rows is None else max(1, min(cores, rows // ROWS_PER_PROCESS)))


def duplicates_marked(result: pa.Table, source: str, first: dict[bytes, tuple[str, int]]) -> pa.Table:
    """A source's rows, those with the fate `duplicate` whose turns came before; `first`: hash → where it was kept."""
    fates, details, hashes, numbers = (result[name].to_pylist() for name in ("fate", "detail", "hash", "index"))
    for row, (fate, digest, number) in enumerate(zip(fates, hashes, numbers, strict=True)):
        if digest and fate != TOO_LONG:
            here = (source, number)
            there = first.setdefault(bytes.fromhex(digest), here)
            if there != here:
                fates[row] = DUPLICATE
                details[row] = f"same as {there[0]} row {there[1]}"
    for name, values in (("fate", fates), ("detail", details)):
        result = result.set_column(SCHEMA.get_field_index(name), name, pa.array(values, pa.string()))
    return result
