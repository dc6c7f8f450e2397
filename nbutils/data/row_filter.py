"""The filter of single rows: one pure function from an Arrow batch to an Arrow batch.

It needs nothing but its own fields and the files that they name, so any engine that maps batches can run it, in any
order and on any number of machines. What depends on the order of rows (duplicates) is decided afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from nbutils.core.chatml import OutsideVocabularyError
from nbutils.core.encode_within import Measured, encode_within
from nbutils.core.errors import UserError
from nbutils.core.files import read_json
from nbutils.core.run.record import SCHEMA as RECORD_SCHEMA
from nbutils.data.contamination import Match, loaded_index
from nbutils.data.fates import (
    CONTAMINATED,
    KEPT,
    MALFORMED,
    OUTSIDE_VOCABULARY,
    TOO_LONG,
    Judged,
    Turn,
    conversation_hash,
    judge,
    side_of,
    uniform,
)
from nbutils.data.settings import DatasetSpec, DataSettings
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
"""What the filter returns, a row for every row taken. `tokens` is null where nothing was read as tokens,
`side` and `hash` are empty there; ids and mask are null for rows that are dropped. `matched_items` names every
evaluation item (such as `hellaswag item 17`) that a contaminated row shares words with, and is null for others."""
LEDGER_SCHEMA = pa.schema(
    [field for field in SCHEMA if field.name not in ("messages", "input_ids", "supervised")],
    metadata={"schema": str(RECORD_SCHEMA)},
)
"""Of `ledger.parquet`; the number rises when a column's meaning changes, not when one is added."""


@dataclass(frozen=True)
class RowFilter:
    """The filter of one dataset's rows; `folder` is the stage's, with the tokenizer and the contamination index."""

    spec: DatasetSpec
    shape: str
    settings: DataSettings
    folder: Path

    def __call__(self, table: pa.Table, start: int) -> pa.Table:
        """Rows with their fates, duplicates not yet looked for; `start` numbers the first row in its source."""
        numbers, judged = self.judged(table, start)
        measured = self._measured(judged)
        matches = self._matches(judged, measured)
        decided = [_decided(j, measured.get(i), matches.get(i)) for i, j in enumerate(judged)]
        hashes = [conversation_hash(j.turns) if i in measured else "" for i, j in enumerate(judged)]
        read = [measured.get(i) for i in range(len(judged))]
        kept = [m.encoding if m else None for m in read]
        columns = {
            "source": [self.spec.label] * len(numbers),
            "index": numbers,
            "fate": [fate for fate, _ in decided],
            "detail": [detail for _, detail in decided],
            "turns": [len(j.turns) for j in judged],
            "characters": [j.characters for j in judged],
            "tokens": [m.tokens if m else None for m in read],
            "tokens_is_lower_bound": [bool(m and not m.exact) for m in read],
            "supervised_tokens": [m.supervised if m else None for m in read],
            "lost_last_user_turn": [j.lost_last_user_turn for j in judged],
            "side": [self.side(h) if h else "" for h in hashes],
            "hash": hashes,
            "matched_items": [matches[i].items if i in matches else None for i in range(len(judged))],
            "messages": message_lists([j.turns for j in judged]),
            "input_ids": [encoding.input_ids if encoding else None for encoding in kept],
            "supervised": [encoding.supervised if encoding else None for encoding in kept],
        }
        return pa.table(columns, schema=SCHEMA)

    def judged(self, table: pa.Table, start: int) -> tuple[list[int], list[Judged]]:
        """The numbers of the rows taken (`fraction`), and each one cleaned and judged as far as text alone decides."""
        rows = read_rows(table, BY_NAME[self.shape])
        taken = list(range(len(rows)))
        if self.spec.fraction < 1:
            draw, seed = self.spec.draw, self.settings.split_seed
            taken = [i for i in taken if uniform(f"{draw}:{start + i}", seed) < self.spec.fraction]
        return [start + i for i in taken], [_judged(rows[i]) for i in taken]

    def side(self, conversation: str) -> str:
        """The side of a conversation, by its hash."""
        return side_of(conversation, self.settings.split_seed, self.settings.eval_fraction)

    def _measured(self, judged: list[Judged]) -> dict[int, Measured]:
        """Conversations as tokens, without the rows dropped already. What cannot be encoded is malformed."""
        tokenizer = loaded_tokenizer(str(self.folder / "tokenizer"))
        good = [i for i, j in enumerate(judged) if j.fate == KEPT]

        def encoded(rows: list[int]) -> dict[int, Measured]:
            conversations = [as_messages(judged[i].turns) for i in rows]
            return dict(zip(rows, encode_within(tokenizer, conversations, self.settings.max_length), strict=True))

        try:
            return encoded(good)
        except UserError:
            found: dict[int, Measured] = {}
            for i in good:
                try:
                    found |= encoded([i])
                except UserError as error:
                    fate = OUTSIDE_VOCABULARY if isinstance(error, OutsideVocabularyError) else MALFORMED
                    judged[i] = Judged(judged[i].turns, fate, str(error))
            return found

    def _matches(self, judged: list[Judged], measured: dict[int, Measured]) -> dict[int, Match]:
        """What the conversations that fit share with evaluation items."""
        if not self.settings.contamination_tasks:
            return {}
        fit = [i for i, m in measured.items() if m.encoding]
        index = loaded_index(str(self.folder / "contamination"))
        matches = index.matches([[text for _, text in judged[i].turns] for i in fit])
        return {i: match for i, match in zip(fit, matches, strict=True) if match}


def _judged(row: list[Turn] | Malformed) -> Judged:
    return Judged([], row.fate, str(row)) if isinstance(row, Malformed) else judge(row)


def _decided(judged: Judged, measured: Measured | None, match: Match | None) -> tuple[str, str]:
    """Fate and detail."""
    if measured and not measured.encoding:
        return TOO_LONG, f"{measured.tokens:,} tokens{'' if measured.exact else ' or more'}"
    if match:
        return CONTAMINATED, match.detail
    apart = measured.encoding.apart if measured and measured.encoding else 0
    return judged.fate, f"{apart} texts read apart from their header" if apart else judged.detail


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
