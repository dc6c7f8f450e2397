"""Sets of tokenised conversations: collected in an Arrow file, saved as folders of the `datasets` library."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from nbutils.core.encode_within import encode_within
from nbutils.core.files import replaced, sha256_of_json
from nbutils.data.work import SCHEMA

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ["source", "index", "messages", "input_ids", "supervised"]
"""What a row of the train and eval sets holds."""


AT_ONCE = 20
"""Over-long conversations encoded together."""


class RowSet:
    """One set while it grows: its rows on the disk, its counts and the hash of its ids and masks in memory."""

    def __init__(self, folder: Path) -> None:
        from datasets.arrow_writer import ArrowWriter

        self.folder = folder
        self.file = folder.with_name(f".{folder.name}.partial.arrow")
        self.writer = ArrowWriter(path=str(self.file), schema=pa.schema([SCHEMA.field(name) for name in COLUMNS]))
        # One digest for each, since what they see must not depend on where one batch ends and the next begins.
        self.digests = {name: hashlib.sha256() for name in ("lengths", "input_ids", "supervised")}
        self.rows = self.tokens = self.supervised_tokens = self.turns = 0

    def add(self, table: pa.Table) -> None:
        """Appends rows of a batch's result."""
        if not table.num_rows:
            return
        self.rows += table.num_rows
        self.tokens += pc.sum(table["tokens"]).as_py()
        self.supervised_tokens += pc.sum(table["supervised_tokens"]).as_py()
        self.turns += pc.sum(table["turns"]).as_py()
        self.digests["lengths"].update(pc.list_value_length(table["input_ids"]).to_numpy().tobytes())
        for name in ("input_ids", "supervised"):
            values = table[name].combine_chunks().flatten()
            self.digests[name].update(values.to_numpy(zero_copy_only=False).tobytes())
        self.writer.write_table(table.select(COLUMNS))

    def hexdigest(self) -> str:
        """Hash of all ids and masks in order: losses over sets of different hashes cannot be compared."""
        return sha256_of_json({name: digest.hexdigest() for name, digest in self.digests.items()})

    def save(self) -> dict[str, int]:
        """Writes the folder, removes the temporary file and says how much is in it."""
        from datasets import Dataset, disable_progress_bars, enable_progress_bars
        from datasets.utils import are_progress_bars_disabled

        self.writer.finalize()
        dataset = Dataset.from_file(str(self.file))
        dataset._fingerprint = self.hexdigest()[:16]  # the library's own differs from run to run
        disabled = are_progress_bars_disabled()
        disable_progress_bars()
        try:
            with replaced(self.folder) as partial:
                dataset.save_to_disk(partial)
        finally:
            if not disabled:
                enable_progress_bars()
        del dataset
        self.file.unlink()
        return {
            "rows": self.rows,
            "turns": self.turns,
            "tokens": self.tokens,
            "supervised_tokens": self.supervised_tokens,
        }


def encoded_whole(tokenizer: PreTrainedTokenizerBase, rows: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Results of rows that were too long, read to their end: ids, masks and exact counts filled in, a few at a time."""
    rows = iter(rows)
    while group := list(islice(rows, AT_ONCE)):
        found = pa.Table.from_batches(group).to_pylist()
        whole = encode_within(tokenizer, [row["messages"] for row in found], sys.maxsize)
        for row, measured in zip(found, whole, strict=True):
            assert measured.encoding is not None
            row |= {
                "tokens": measured.tokens,
                "tokens_is_lower_bound": False,
                "supervised_tokens": measured.supervised,
                "input_ids": measured.encoding.input_ids,
                "supervised": measured.encoding.supervised,
            }
        yield pa.Table.from_pylist(found, schema=SCHEMA)
