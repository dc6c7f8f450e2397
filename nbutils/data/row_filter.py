"""The filter of single rows: one pure function from an Arrow batch to an Arrow batch.

It needs nothing but its own fields and the files that they name, so any engine that maps batches can run it, in any
order and on any number of machines. What depends on the order of rows (duplicates) is decided afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from nbutils.core.encode_within import Measured, encode_within
from nbutils.core.errors import UserError
from nbutils.core.files import Json, read_json
from nbutils.core.run.record import SCHEMA as RECORD_SCHEMA
from nbutils.core.vocabulary import OutsideVocabularyError
from nbutils.data.contamination import Match, loaded_index
from nbutils.data.fates import (
    CONTAMINATED,
    KEPT,
    MALFORMED,
    OUTSIDE_VOCABULARY,
    TOO_LONG,
    Judged,
    conversation_hash,
    judge,
    opening_hash,
    side_of,
    uniform,
)
from nbutils.data.messages import STOP, Malformed
from nbutils.data.near_duplicates import windows
from nbutils.data.settings import DatasetSpec, DataSettings
from nbutils.data.shapes import Shape, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))
SCHEMA = pa.schema(
    {
        "source": pa.string(),
        "index": pa.int64(),
        "fate": pa.string(),
        "detail": pa.string(),
        "turns": pa.int32(),
        "characters": pa.int64(),
        "tokens": pa.int64(),
        "tokens_is_lower_bound": pa.bool_(),
        "supervised_tokens": pa.int64(),
        "lost_last_user_turn": pa.bool_(),
        "context_turns": pa.list_(pa.int32()),
        "unread": pa.list_(pa.string()),
        "side": pa.string(),
        "hash": pa.string(),
        "opening": pa.string(),
        "matched_items": pa.list_(pa.string()),
        "messages": MESSAGES,
        "input_ids": pa.list_(pa.int32()),
        "supervised": pa.list_(pa.bool_()),
        "context": pa.list_(pa.bool_()),
        "windows": pa.list_(pa.uint64()),
    }
)
"""What the filter returns, a row for every row taken. `tokens` is null where nothing was read as tokens,
`side`, `hash` and `opening` are empty there; ids and mask are null for rows that are dropped. `matched_items` names
every evaluation item (such as `hellaswag item 17`) that a contaminated row shares words with, and is null for others.
`context_turns` are the places of turns that are marked not to be learnt, `unread` what held text beside it.
`windows` are hashes of what a kept row's words say, null where near-duplicates are not looked for."""
LEDGER_SCHEMA = pa.schema(
    [field for field in SCHEMA if field.name not in ("messages", "input_ids", "supervised", "context", "windows")],
    metadata={"schema": str(RECORD_SCHEMA)},
)
"""Of `ledger.parquet`; the number rises when a column's meaning changes, not when one is added."""


@dataclass(frozen=True)
class RowFilter:
    """The filter of one dataset's rows; `folder` is the stage's, with the tokenizer and the contamination index."""

    spec: DatasetSpec
    shape: Shape
    settings: DataSettings
    folder: Path

    def __call__(self, table: pa.Table, start: int) -> pa.Table:
        """Rows with their fates, duplicates not yet looked for; `start` numbers the first row in its source."""
        judged = self.judged(table, start)
        measured = self._measured(judged, [n for n, j in judged.items() if j.fate == KEPT])
        matches: dict[int, Match] = {}
        if self.settings.contamination_tasks:
            index = loaded_index(str(self.folder / "contamination"))
            fitting = [n for n, m in measured.items() if m.encoding]
            found = index.matches([[text for _, text in judged[number].turns] for number in fitting])
            matches = {fitting[place]: match for place, match in found.items()}
        rows = [self._row(n, j, measured.get(n), matches.get(n)) for n, j in judged.items()]
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        if self.settings.near_duplicates == "off":
            return table
        texts = [
            " ".join(text for _, text in judged[row["index"]].turns) if row["fate"] == KEPT else "" for row in rows
        ]
        return table.set_column(SCHEMA.get_field_index("windows"), SCHEMA.field("windows"), windows(texts))

    def _row(self, number: int, judged: Judged, measured: Measured | None, match: Match | None) -> Json:
        row = vars(judged) | {
            "source": self.spec.label,
            "index": number,
            "turns": len(judged.turns),
            "characters": sum([len(text) for _, text in judged.turns]),
            "tokens_is_lower_bound": False,
            "context_turns": [index for index, message in enumerate(judged.messages) if "learn" in message],
            "side": "",
            "hash": "",
            "opening": "",
            "messages": judged.messages,
        }
        if measured:
            opening = opening_hash(judged.turns)  # those that begin alike, such as a growing one, share it
            row |= {
                "hash": conversation_hash(judged.turns),
                "opening": opening,
                "side": self.side(opening),
                "tokens": measured.tokens,
                "tokens_is_lower_bound": not measured.exact,
                "supervised_tokens": measured.supervised,
            }
            if measured.encoding:
                row |= vars(measured.encoding)
                if apart := measured.encoding.apart:
                    row["detail"] = f"{apart} texts read apart from their header"
            else:
                row |= {"fate": TOO_LONG, "detail": f"{measured.tokens:,} tokens{'' if measured.exact else ' or more'}"}
        if match:
            row |= {"fate": CONTAMINATED, "detail": match.detail, "matched_items": match.items}
        return row

    def judged(self, table: pa.Table, start: int) -> dict[int, Judged]:
        """The rows taken (`fraction`) by number, each judged as far as text alone decides."""
        rows = dict(enumerate(read_rows(table, self.shape), start))
        if self.spec.fraction < 1:
            draw, seed = self.spec.draw, self.settings.split_seed
            rows = {n: row for n, row in rows.items() if uniform(f"{draw}:{n}", seed) < self.spec.fraction}
        judged = {}
        for number, (row, unread) in rows.items():
            if not isinstance(row, Malformed):
                found = judge(row)
                if any(role == "system" and text.strip() for role, text in row):
                    unread = [*unread, "system messages"]
            elif row.fate == STOP:
                raise UserError(f"Row {number} of {self.spec.label} cannot be used: {row}.")
            else:
                found = Judged([], row.fate, str(row))
            judged[number] = replace(found, unread=unread) if unread else found
        return judged

    def side(self, opening: str) -> str:
        """The side of the conversations that begin so, by the hash of their first exchange."""
        return side_of(opening, self.settings.split_seed, self.settings.eval_fraction)

    def _measured(self, judged: dict[int, Judged], rows: list[int]) -> dict[int, Measured]:
        """The rows of these numbers as tokens. What cannot be encoded is malformed."""
        tokenizer = loaded_tokenizer(str(self.folder / "tokenizer"))
        conversations = [judged[number].messages for number in rows]
        try:
            return dict(zip(rows, encode_within(tokenizer, conversations, self.settings.max_length), strict=True))
        except UserError as error:
            if len(rows) > 1:
                return {n: measured for row in rows for n, measured in self._measured(judged, [row]).items()}
            fate = OUTSIDE_VOCABULARY if isinstance(error, OutsideVocabularyError) else MALFORMED
            judged[rows[0]] = replace(judged[rows[0]], fate=fate, detail=str(error))
            return {}


@lru_cache(maxsize=2)
def loaded_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer that the stage saved, read once by each process."""
    if read_json(Path(folder) / "tokenizer_config.json").get("tokenizer_class") == "TokenizersBackend":
        from transformers import PreTrainedTokenizerFast  # what `AutoTokenizer` would take, but without torch

        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
