"""What `data/summary.json` says: the fates reconciled with the sources, the sets, what other limits would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nbutils.core.chatml import IM_END, IM_START, PAD
from nbutils.core.errors import UserError
from nbutils.core.files import Json, write_json
from nbutils.data.fates import (
    EMPTY_MESSAGE,
    FATES,
    KEPT,
    MALFORMED,
    NO_ASSISTANT_TURN,
    NO_USER_TURN,
    REASONS,
    REJECTED,
    TOO_LONG,
)
from nbutils.data.row_batches import Source
from nbutils.data.sets import Sample, read_whole, where
from nbutils.data.settings import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCHEMA = 1
CONTROLS = {"im_start": IM_START, "im_end": IM_END, "pad": PAD}
ADVICE = {
    MALFORMED: "Mend the rows, or name other files in `datasets`",
    REJECTED: "Take the marks out, or give data that is to be learnt",
    NO_USER_TURN: "Check the names of the roles: questions come from user or human",
    NO_ASSISTANT_TURN: "Check the names of the roles: answers come from assistant or gpt",
    EMPTY_MESSAGE: "Check that the texts are under content, value or text",
    TOO_LONG: "Raise max_length",
}
"""What helps where most rows are dropped for a reason; for any other, other data does."""
LIMITS = (512, 1024, 2048)
COMMON = 0.01
BARS = 16
"""Bars up to `max_length` in the histogram of lengths."""


@dataclass(frozen=True)
class Filtered:
    """What a pass over all sources found besides the ledger: rows read by source, the sets, a sample of long rows."""

    read: dict[str, int]
    sets: Json
    long: Sample


def write_summary(
    folder: Path,
    settings: DataSettings,
    sources: Sequence[Source],
    tokenizer: PreTrainedTokenizerBase,
    filtered: Filtered,
    contamination: Json | None,
) -> Json:
    """Writes and returns `summary.json`. UserError where rows are unaccounted for, or a set would be empty."""
    for source in sources:
        read = filtered.read[source.label]
        if source.rows not in (None, read):
            raise UserError(
                f"The dataset {source.label} had {source.rows:,} rows when it was opened, and {read:,} "
                "were read: something changed it meanwhile; run this notebook again."
            )
    names = ["source", "index", "fate", "detail", "tokens", "lost_last_user_turn", "unread", "side", "opening"]
    ledger = pq.read_table(folder / "ledger.parquet", columns=names)
    grouped = ledger.group_by("fate").aggregate([("fate", "count"), ("tokens", "sum")])
    counts = grouped.to_pandas().set_index("fate").reindex(FATES).fillna(0).astype(int)
    # tokens of over-long rows are a lower bound, and 0 where none were read
    fates = counts.set_axis(["rows", "tokens"], axis=1).to_dict("index")
    for side in ("train", "eval"):
        if not filtered.sets[side]["rows"]:
            raise UserError(f"No conversation is left for the {side} set: {_why_none_is_left(ledger, fates)}.")
    if apart := pc.sum(pc.not_equal(where(ledger, "fate", KEPT)["detail"], "")).as_py():
        print(f"Of {apart:,} conversations texts were read apart: this tokenizer has pieces that span header and text.")
    taken = _counts(ledger["source"])
    counted = [whole.tokens for _, whole in read_whole(filtered.long.rows(), tokenizer)]
    summary = {
        "schema": SCHEMA,
        "rows": ledger.num_rows,
        "rows_not_taken": sum(filtered.read.values()) - ledger.num_rows,
        "fates": fates,
        "unread": _counts(pc.list_flatten(ledger["unread"])),
        "trimmed_rows": pc.sum(ledger["lost_last_user_turn"]).as_py(),
        **filtered.sets,
        **lengths(ledger, settings.max_length, np.array(counted, np.int64)),
        "max_length": settings.max_length,
        "split_seed": settings.split_seed,
        "eval_fraction": settings.eval_fraction,
        "openings": openings(ledger),
        "datasets": [
            source.spec.model_dump(include={"path", "name", "split", "fraction"})
            | {
                "shape": source.shape.name,
                "rows": taken.get(source.label, 0),
                "rows_in_source": filtered.read[source.label],
                "files": source.files,
                "revision": source.revision,
                "fingerprint": source.fingerprint,
            }
            for source in sources
        ],
        "contamination": contamination,
        "tokenizer": {
            "base_model": settings.base_model,
            "pieces": len(tokenizer),
            **{key: tokenizer.convert_tokens_to_ids(token) for key, token in CONTROLS.items()},
            **({"conversations_read_apart": apart} if apart else {}),
        },
    }
    write_json(folder / "summary.json", summary)
    return summary


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {count["values"]: count["counts"] for count in column.value_counts().to_pylist()}


def openings(ledger: pa.Table) -> list[Json]:
    """First exchanges with which more than `COMMON` of the kept rows begin: their rows, side and first row."""
    kept = where(ledger, "fate", KEPT)
    columns = [("opening", "count"), ("side", "first"), ("source", "first"), ("index", "first")]
    found = kept.group_by("opening", use_threads=False).aggregate(columns).sort_by([("opening_count", "descending")])
    found = found.drop_columns("opening").rename_columns(["rows", "side", "source", "index"])
    return found.filter(pc.greater(found["rows"], max(1, COMMON * kept.num_rows))).to_pylist()


def _why_none_is_left(ledger: pa.Table, fates: dict[str, dict[str, int]]) -> str:
    rows = {fate: counts["rows"] for fate, counts in fates.items()}
    alike = next(iter(openings(ledger)), {"rows": 0})
    if alike["rows"] > rows[KEPT] / 2:
        return (
            f"{alike['rows']:,} of {rows[KEPT]:,} conversations begin with the same exchange, that of row "
            f"{alike['index']} of {alike['source']}, and those that begin alike stay on one side. Give conversations "
            "that begin differently"
        )
    if rows[KEPT] or not ledger.num_rows:
        return f"the other one has all {rows[KEPT]:,} that were kept; change eval_fraction, or give more data"
    fate = max(REASONS, key=rows.__getitem__)
    first = where(ledger, "fate", fate).slice(0, 1).to_pylist()[0]
    return (
        f"{rows[fate]:,} of {ledger.num_rows:,} rows were dropped as {fate} ({REASONS[fate]}), the first is row "
        f"{first['index']} of {first['source']}{first['detail'] and ': '}{first['detail']}. "
        f"{ADVICE.get(fate, 'Give other data')}"
    )


def lengths(ledger: pa.Table, max_length: int, counted: np.ndarray) -> Json:
    """`lengths`: how long conversations are, as a histogram; `limits`: what each would drop.

    Up to `max_length` every well-formed conversation is counted. Above it reading stopped early: those of which
    `counted` holds the length were read to their end and stand for all of them.
    """
    is_long = pc.equal(ledger["fate"], TOO_LONG)
    long_rows = pc.sum(is_long).as_py()
    fits = ledger["tokens"].filter(pc.invert(is_long)).drop_null().to_numpy()
    tokens = np.concatenate([fits, counted])
    rows = np.repeat([1, long_rows / max(1, len(counted))], [len(fits), len(counted)])  # that each length stands for
    end = 3 * max_length
    histogram = np.histogram(tokens.clip(max=end), 3 * BARS, (1, end + 1), weights=rows)[0]
    limits = [
        {
            "limit": limit,
            "share_of_rows": rows[tokens > limit].sum() / rows.sum(),
            "share_of_tokens": (rows * tokens)[tokens > limit].sum() / (rows * tokens).sum(),
        }
        for limit in sorted({*LIMITS, max_length})
    ]
    return {
        "limits": limits,
        "lengths": {
            "too_long": long_rows,
            "counted": len(counted),
            "bin_tokens": max_length / BARS,
            "rows": histogram.tolist(),
        },
    }
