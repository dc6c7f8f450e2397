"""The per-row work of the data stage: one pure function from an Arrow batch to an Arrow batch.

It needs nothing but its own fields and the files that they name, so any engine that maps batches can run it, in any
order and on any number of machines. What depends on the order of rows (duplicates) the driver decides afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nbutils.core.encode_within import Measured, encode_within
from nbutils.core.errors import UserError
from nbutils.core.files import read_json
from nbutils.core.run.record import SCHEMA as RECORD_SCHEMA
from nbutils.data.contamination import loaded_index
from nbutils.data.fates import (
    CONTAMINATED,
    KEPT,
    MALFORMED,
    TOO_LONG,
    Judged,
    Turn,
    conversation_hash,
    judge,
    side_of,
    uniform,
)
from nbutils.data.shapes import BY_NAME, Malformed, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.large_string())])
SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("index", pa.int64()),
        ("fate", pa.string()),
        ("detail", pa.string()),
        ("turns", pa.int32()),
        ("characters", pa.int64()),
        ("tokens", pa.int64()),
        ("tokens_is_lower_bound", pa.bool_()),
        ("supervised_tokens", pa.int64()),
        ("lost_last_user_turn", pa.bool_()),
        ("side", pa.string()),
        ("hash", pa.string()),
        ("matched_items", pa.list_(pa.string())),
        ("messages", pa.list_(MESSAGE)),
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
    ]
)
"""What the batch function returns, a row for every row taken. `tokens` is null where nothing was read as tokens,
`side` and `hash` are empty there; ids and mask are null for rows that are dropped. `matched_items` names every
evaluation item (such as `hellaswag item 17`) that a contaminated row shares words with, and is null for others."""
LEDGER = [name for name in SCHEMA.names if name not in ("messages", "input_ids", "supervised")]
LEDGER_SCHEMA = pa.schema([SCHEMA.field(name) for name in LEDGER], metadata={"schema": str(RECORD_SCHEMA)})
"""Of `ledger.parquet`; the number rises when a column's meaning changes, not when one is added."""


@dataclass(frozen=True)
class RowWork:
    """The batch function. `source`, `shape`, `fraction` and `draw` say what is read, the rest what becomes of it.

    `contamination_folder` holds an index of evaluation items ('' for none).
    """

    source: str
    shape: str
    fraction: float
    draw: str
    tokenizer_folder: str
    max_length: int
    split_seed: int
    eval_fraction: float
    contamination_folder: str

    def __call__(self, table: pa.Table, start: int) -> pa.Table:
        """Rows with their fates, duplicates not yet looked for; `start` numbers the first row in its source."""
        taken, judged = self.judged(table, start)
        measured = self._measured(judged)
        fates = [_fate(j, m) for j, m in zip(judged, measured, strict=True)]
        details, items = self._details(judged, measured, fates)
        hashes = [conversation_hash(j.turns) if m else "" for j, m in zip(judged, measured, strict=True)]
        kept = [m.encoding if m else None for m in measured]
        columns = {
            "source": [self.source] * len(taken),
            "index": taken,
            "fate": fates,
            "detail": details,
            "turns": [len(j.turns) for j in judged],
            "characters": [j.characters for j in judged],
            "tokens": [m.tokens if m else None for m in measured],
            "tokens_is_lower_bound": [bool(m and not m.exact) for m in measured],
            "supervised_tokens": [m.supervised if m else None for m in measured],
            "lost_last_user_turn": [j.lost_last_user_turn for j in judged],
            "side": [side_of(h, self.split_seed, self.eval_fraction) if h else "" for h in hashes],
            "hash": hashes,
            "matched_items": items,
            "messages": message_lists([j.turns for j in judged]),
            "input_ids": [encoding.input_ids if encoding else None for encoding in kept],
            "supervised": [encoding.supervised if encoding else None for encoding in kept],
        }
        return pa.table({field.name: _array(columns[field.name], field.type) for field in SCHEMA}, schema=SCHEMA)

    def judged(self, table: pa.Table, start: int) -> tuple[list[int], list[Judged]]:
        """The numbers of the rows taken (`fraction`), and each one cleaned and judged as far as text alone decides."""
        rows = read_rows(table, BY_NAME[self.shape])
        taken = list(range(start, start + len(rows)))
        if self.fraction < 1:
            taken = [i for i in taken if uniform(f"{self.draw}:{i}", self.split_seed) < self.fraction]
        return taken, [_judged(rows[i - start]) for i in taken]

    def _measured(self, judged: list[Judged]) -> list[Measured | None]:
        """Conversations as tokens; None for rows dropped already. What cannot be encoded is malformed."""
        tokenizer = loaded_tokenizer(self.tokenizer_folder)
        good = [i for i, j in enumerate(judged) if j.fate == KEPT]
        found: list[Measured | None] = [None] * len(judged)
        try:
            batch = encode_within(tokenizer, [as_messages(judged[i].turns) for i in good], self.max_length)
            for i, measured in zip(good, batch, strict=True):
                found[i] = measured
        except UserError:
            for i in good:
                try:
                    found[i] = encode_within(tokenizer, [as_messages(judged[i].turns)], self.max_length)[0]
                except UserError as error:
                    judged[i] = Judged(judged[i].turns, MALFORMED, str(error))
        return found

    def _details(
        self, judged: list[Judged], measured: list[Measured | None], fates: list[str]
    ) -> tuple[list[str], list[list[str] | None]]:
        """What the ledger says about each row, and the items that contaminate it; sets the fate of such rows."""
        details = [
            _length(m) if fate == TOO_LONG else j.detail for j, m, fate in zip(judged, measured, fates, strict=True)
        ]
        items: list[list[str] | None] = [None] * len(fates)
        if self.contamination_folder:
            kept = [i for i, fate in enumerate(fates) if fate == KEPT]
            texts = [[text for _, text in judged[i].turns] for i in kept]
            for i, match in zip(kept, loaded_index(self.contamination_folder).matches(texts), strict=True):
                if match:
                    fates[i], details[i], items[i] = CONTAMINATED, match.detail, match.items
        return details, items


def _judged(row: list[Turn] | Malformed) -> Judged:
    return Judged([], MALFORMED, str(row)) if isinstance(row, Malformed) else judge(row)


def _fate(judged: Judged, measured: Measured | None) -> str:
    return TOO_LONG if measured and measured.encoding is None else judged.fate


def _length(measured: Measured | None) -> str:
    return f"{measured.tokens:,} tokens{'' if measured.exact else ' or more'}" if measured else ""


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


def as_messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Turns as the messages that the rest of the project reads."""
    return [{"role": role, "content": text} for role, text in turns]


def message_lists(conversations: Sequence[Sequence[Turn]]) -> pa.ListArray:
    """Conversations as an Arrow column of lists of {role, content}."""
    roles = pa.array([role for turns in conversations for role, _ in turns], pa.string())
    texts = pa.array([text for turns in conversations for _, text in turns], pa.large_string())
    offsets = [0]
    for turns in conversations:
        offsets.append(offsets[-1] + len(turns))
    items = pa.StructArray.from_arrays([roles, texts], fields=list(MESSAGE))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items)


def loaded_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer that the stage saved, read once by each process (again when the file changes)."""
    return _tokenizer(folder, (Path(folder) / "tokenizer.json").stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _tokenizer(folder: str, _changed: int) -> PreTrainedTokenizerBase:
    if read_json(Path(folder) / "tokenizer_config.json").get("tokenizer_class") == "TokenizersBackend":
        from transformers import PreTrainedTokenizerFast  # what `AutoTokenizer` would take, but without torch

        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer
