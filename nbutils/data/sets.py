"""What is collected as rows come out of the filter: sets of tokenised conversations, and small random samples."""

from __future__ import annotations

import hashlib
import sys
from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from nbutils.core.encode_within import Measured, encode_within
from nbutils.core.files import Json, replaced, sha256_of_json
from nbutils.data.fates import KEPT, uniform
from nbutils.data.row_filter import SCHEMA

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = pa.schema(
    [SCHEMA.field(name) for name in ("source", "index", "messages", "input_ids", "supervised", "context")]
)
"""What a row of the train and eval sets holds."""
AT_ONCE = 50
"""Over-long conversations encoded together."""
SHOWN_CHARACTERS = 160
SHOWN_MESSAGES = 4


class RowSet:
    """One set while it grows: its rows on the disk, its counts and the hash of its ids and masks in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder.with_name(f".{folder.name}.partial.arrow")
        self.writer = pa.ipc.new_stream(str(self.file), COLUMNS)
        # One digest for each, since what they see must not depend on where one batch ends and the next begins.
        self.digests = {name: hashlib.sha256() for name in ("lengths", "input_ids", "supervised")}
        self.counts = dict.fromkeys(("rows", "turns", "tokens", "supervised_tokens", "context_turns"), 0)

    def add(self, table: pa.Table) -> None:
        """Appends rows of a batch's result."""
        if not table.num_rows:
            return
        self.counts["rows"] += table.num_rows
        for name in ("turns", "tokens", "supervised_tokens"):
            self.counts[name] += pc.sum(table[name]).as_py()
        self.counts["context_turns"] += len(pc.list_flatten(table["context_turns"]))  # marked not to be learnt
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
        from datasets import Dataset, disable_progress_bars

        disable_progress_bars()  # it would stay in the notebook for good
        self.writer.close()
        dataset = Dataset.from_file(str(self.file))
        dataset._fingerprint = self.hexdigest()[:16]  # the library's own differs from run to run
        with replaced(self.folder) as partial:
            dataset.save_to_disk(partial)
        self.file.unlink()
        return self.counts


class Sample:
    """What is kept of the `size` keys with the smallest random numbers: a uniform sample without repetition.

    Which keys these are follows from them and the seed, not from their order or the number of processes.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.smallest: list[tuple[float, str]] = []
        self.found: Json = {}

    def add(self, rows: pa.Table, keys: Iterable[str]) -> None:
        """Takes those of the rows whose keys belong to the sample as far as is known by now."""
        for index, key in enumerate(keys):
            number = uniform(f"sample {key}", self.seed)  # not the number that decides the key's side
            if key in self.found or (len(self.smallest) == self.size and number >= self.smallest[-1][0]):
                continue
            insort(self.smallest, (number, key))
            self.found[key] = rows.slice(index, 1).to_pylist()[0]  # the slice would keep all of `rows` in memory
            if len(self.smallest) > self.size:
                del self.found[self.smallest.pop()[1]]

    def rows(self) -> list[Json]:
        """The sample in row order."""
        return list(self.found.values())


def read_whole(rows: Sequence[Json], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Json, Measured]]:
    """The rows, each with its conversation encoded to its end."""
    for start in range(0, len(rows), AT_ONCE):
        group = rows[start : start + AT_ONCE]
        conversations = [
            [message | {"learn": n not in row["context_turns"]} for n, message in enumerate(row["messages"])]
            for row in group
        ]
        yield from zip(group, encode_within(tokenizer, conversations, sys.maxsize), strict=True)


def add_dropped(samples: dict[str, Sample], rows: pa.Table) -> None:
    """Offers the dropped ones of the rows to the samples, of which there is one for each reason."""
    rows = rows.select(["source", "index", "detail", "fate", "messages"])
    for fate in set(rows["fate"].to_pylist()) - {KEPT}:
        some = where(rows, "fate", fate)
        names = zip(some["source"].to_pylist(), some["index"].to_pylist(), strict=True)
        samples[fate].add(some, (f"{source} row {index}" for source, index in names))


def where(table: pa.Table, name: str, value: str) -> pa.Table:
    """The rows with that value in the column."""
    return table.filter(pc.equal(table[name], value))


def shown(row: Json) -> Json:
    """A row as it is shown, with the beginning of its text."""
    first = row["messages"][:SHOWN_MESSAGES]
    lines = [f"{m['role']}: {' '.join(m['content'].split())[:SHOWN_CHARACTERS]}" for m in first]
    text = "\n".join(lines + ["…"] * (len(row["messages"]) > len(first)))
    return {name: row[name] for name in ("source", "index", "detail")} | {"text": text}
