"""Makes the tokenizer, filters every source row by row, decides what other rows decide, and writes what comes out."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from nbutils.core.files import Json, replaced, write_json
from nbutils.core.run.models import TINY, ModelRef, train_bpe
from nbutils.data.fates import DUPLICATE, KEPT, NEAR_DUPLICATE, REASONS, TOO_LONG, opening_hash, uniform
from nbutils.data.near_duplicates import NearDuplicates
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

Passed = tuple[Source, int, pa.Table]
"""A source, the rows read of it, and what became of those taken."""


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
    near = None if settings.near_duplicates == "off" else NearDuplicates()
    read = {source.label: 0 for source in sources}
    with (
        closing(results(settings, sources, folder, near)) as passed,  # its workers end here, whatever fails
        replaced(folder / "ledger.parquet") as partial,
        pq.ParquetWriter(partial, LEDGER_SCHEMA) as ledger,
    ):
        marked: Iterable[Passed] = passed
        if near and settings.near_duplicates == "drop":
            marked = near_marked(passed, near, folder / ".rows.partial.arrow")
        for source, rows, result in marked:
            read[source.label] += rows
            ledger.write_table(result.select(LEDGER_SCHEMA.names).replace_schema_metadata(LEDGER_SCHEMA.metadata))
            add_dropped(drops, result)
            kept, long = where(result, "fate", KEPT), where(result, "fate", TOO_LONG)
            for side in ("train", "eval"):
                sets[side].add(where(kept, "side", side))
            counted_long.add(long.select(["messages", "context_turns"]), long["hash"].to_pylist())
            long = where(long, "side", "eval")
            kept_long.add(long, long["hash"].to_pylist())
    for row, whole in read_whole(kept_long.rows(), tokenizer):
        row |= {"tokens": whole.tokens, "supervised_tokens": whole.supervised} | vars(whole.encoding)
        sets["too_long"].add(pa.Table.from_pylist([row], schema=SCHEMA))
    write_json(folder / "samples.json", {reason: list(map(shown, drop.rows())) for reason, drop in drops.items()})
    facts: Json = {name: rows.save() for name, rows in sets.items()}
    facts |= {"eval_hash": sets["eval"].hexdigest(), "near_duplicates": near and near_facts(near, settings, folder)}
    return Filtered(read, facts, counted_long)


def results(
    settings: DataSettings, sources: Sequence[Source], folder: Path, near: NearDuplicates | None
) -> Generator[Passed]:
    """The row filter's results in row order, each with the number of rows read; a progress bar for each source.

    Duplicates are marked, and the windows of the others handed over.
    """
    first: dict[bytes, tuple[str, int]] = {}
    for source in sources:
        filtered = RowFilter(source.spec, source.shape, settings, folder)
        processes = settings.data_processes or os.cpu_count() or 1
        if source.rows is not None and not settings.data_processes:
            processes = max(1, min(processes, source.rows // ROWS_PER_PROCESS))
        # Text on the standard output: it shows in Jupyter, in an executed notebook and in the pipeline's log alike.
        with tqdm(total=source.rows, desc=source.label, unit=" rows", mininterval=0.5, file=sys.stdout) as bar:
            for rows, result in in_order(filtered, source, processes):
                result = duplicates_marked(result, source.label, first)
                if near:
                    near.add(result)
                yield source, rows, result.drop_columns("windows")
                bar.update(rows)


def near_marked(results: Iterable[Passed], near: NearDuplicates, file: Path) -> Iterator[Passed]:
    """The results once more with near-duplicates marked. They wait in a file: a later row may be held out."""
    waiting = []
    with pa.ipc.new_stream(str(file), pa.schema([field for field in SCHEMA if field.name != "windows"])) as writer:
        for source, rows, result in results:
            writer.write_table(result)
            waiting.append((source, rows, result.num_rows))
    details = {(one["source"], one["index"]): one["detail"] for one in near.found}
    with pa.memory_map(str(file)) as mapped:
        table, start = pa.ipc.open_stream(mapped).read_all(), 0
        for source, rows, count in waiting:
            result = table.slice(start, count)
            start += count
            found = pa.array([details.get((source.label, row)) for row in result["index"].to_pylist()], pa.string())
            fates = pc.if_else(pc.is_valid(found), NEAR_DUPLICATE, result["fate"])
            yield source, rows, decided(result, fates, pc.coalesce(found, result["detail"]))
    file.unlink()


def near_facts(near: NearDuplicates, settings: DataSettings, folder: Path) -> Json:
    """How many near-duplicates were found in what, and some of those that are reported and stay in the sets."""
    from datasets import load_from_disk

    facts: Json = {"mode": settings.near_duplicates, "rows": len(near.found), "looked_at": near.looked_at}
    facts |= {"one_window_in": near.one_in, "shown": []}
    if settings.near_duplicates == "report":
        picked = sorted(near.found, key=lambda one: uniform(f"near {one['source'], one['index']}", settings.seed))
        facts["shown"] = [
            shown(load_from_disk(folder / one["side"])[one["number"]] | {"detail": one["detail"]})
            for one in picked[:DROPS_SHOWN]
        ]
    return facts


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
    return decided(result, pa.array(fates, pa.string()), pa.array(details, pa.string()))


def decided(rows: pa.Table, fates: pa.Array, details: pa.Array) -> pa.Table:
    """The rows with other fates and details."""
    for name, values in (("fate", fates), ("detail", details)):
        rows = rows.set_column(SCHEMA.get_field_index(name), name, values)
    return rows
