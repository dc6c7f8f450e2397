"""Sets of tokenised conversations: collected in an Arrow file, saved as folders of the `datasets` library."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from nbutils.core.files import replaced, sha256_of_json
from nbutils.data.row_filter import SCHEMA

COLUMNS = pa.schema([SCHEMA.field(name) for name in ("source", "index", "messages", "input_ids", "supervised")])
"""What a row of the train and eval sets holds."""


class RowSet:
    """One set while it grows: its rows on the disk, its counts and the hash of its ids and masks in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder.with_name(f".{folder.name}.partial.arrow")
        self.writer = pa.ipc.new_stream(str(self.file), COLUMNS)
        # One digest for each, since what they see must not depend on where one batch ends and the next begins.
        self.digests = {name: hashlib.sha256() for name in ("lengths", "input_ids", "supervised")}
        self.counts = dict.fromkeys(("rows", "turns", "tokens", "supervised_tokens"), 0)

    def add(self, table: pa.Table) -> None:
        """Appends rows of a batch's result."""
        if not table.num_rows:
            return
        self.counts["rows"] += table.num_rows
        for name in ("turns", "tokens", "supervised_tokens"):
            self.counts[name] += pc.sum(table[name]).as_py()
        self.digests["lengths"].update(pc.list_value_length(table["input_ids"]).to_numpy().tobytes())
        for name in ("input_ids", "supervised"):
            values = table[name].combine_chunks().flatten()
            self.digests[name].update(values.to_numpy(zero_copy_only=False).tobytes())
        self.writer.write_table(table.select(COLUMNS.names))

    def hexdigest(self) -> str:
        """Hash of all ids and masks in order: losses over sets of different hashes cannot be compared."""
        return sha256_of_json({name: digest.hexdigest() for name, digest in self.digests.items()})

    def save(self) -> dict[str, int]:
        """Writes the folder, removes the temporary file and says how much is in it."""
        from datasets import Dataset, disable_progress_bars, enable_progress_bars
        from datasets.utils import are_progress_bars_disabled

        self.writer.close()
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
        return self.counts
