"""What `data/summary.json` says: the fates reconciled with the sources, the sets, what other limits would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nbutils.core.chatml import IM_END, IM_START, PAD, encode
from nbutils.core.errors import UserError
from nbutils.core.files import shown, write_json
from nbutils.data.batches import Source
from nbutils.data.fates import FATES, KEPT, TOO_LONG
from nbutils.data.samples import LongRows
from nbutils.data.settings import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCHEMA = 1
CONTROLS = {"im_start": IM_START, "im_end": IM_END, "pad": PAD}
LIMITS = (512, 1024, 2048)
BARS = 16
"""Bars up to `max_length` in the histogram of lengths."""


@dataclass(frozen=True)
class Filtered:
    """What a pass over all sources found besides the ledger: rows read by source, the sets, a sample of long rows."""

    read: dict[str, int]
    sets: dict[str, Any]
    long: LongRows


def write_summary(
    folder: Path,
    settings: DataSettings,
    sources: Sequence[Source],
    tokenizer: PreTrainedTokenizerBase,
    filtered: Filtered,
    contamination: dict[str, Any] | None,
) -> dict[str, Any]:
    """Writes and returns `summary.json`. UserError where rows are unaccounted for, or a set would be empty."""
    file = folder / "ledger.parquet"
    for source in sources:
        read = filtered.read[source.label]
        if source.rows not in (None, read):
            raise UserError(
                f"The dataset {source.label} had {source.rows:,} rows when it was opened, and {read:,} "
                "were read: something changed it meanwhile; run this notebook again."
            )
    for side in ("train", "eval"):
        if not filtered.sets[side]["rows"]:
            raise UserError(
                f"No conversation is left for the {side} set ({shown(file)} says why); "
                "raise max_length, change eval_fraction, or give more data."
            )
    columns = ["source", "fate", "tokens", "lost_last_user_turn"]
    ledger = pq.read_table(file, columns=columns, read_dictionary=columns[:2]).unify_dictionaries()
    apart = pq.read_table(file, columns=["fate"], filters=[("fate", "==", KEPT), ("detail", "!=", "")]).num_rows
    if apart:
        print(f"Of {apart:,} conversations texts were read apart: this tokenizer has pieces that span header and text.")
    taken = {count["values"]: count["counts"] for count in ledger["source"].value_counts().to_pylist()}
    long_lengths = np.array([found.tokens for _, found in filtered.long.read_whole(tokenizer)], np.int64)
    summary = {
        "schema": SCHEMA,
        "rows": ledger.num_rows,
        "rows_not_taken": sum(filtered.read.values()) - ledger.num_rows,
        "fates": by_fate(ledger),
        "trimmed_rows": pc.sum(ledger["lost_last_user_turn"]).as_py(),
        **filtered.sets,
        **limit_costs(ledger, settings.max_length, long_lengths),
        "tokens_per_role": tokens_per_role(filtered.sets, tokenizer),
        "max_length": settings.max_length,
        "split_seed": settings.split_seed,
        "eval_fraction": settings.eval_fraction,
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


def by_fate(ledger: pa.Table) -> dict[str, dict[str, int]]:
    """Rows and tokens by fate; `tokens` of over-long rows is a lower bound, and 0 where no tokens were read."""
    grouped = ledger.group_by("fate").aggregate([([], "count_all"), ("tokens", "sum")]).to_pylist()
    found = {row["fate"]: {"rows": row["count_all"], "tokens": row["tokens_sum"] or 0} for row in grouped}
    return {fate: found.get(fate, {"rows": 0, "tokens": 0}) for fate in FATES}


def limit_costs(ledger: pa.Table, max_length: int, counted: np.ndarray) -> dict[str, Any]:
    """`limits`: what each would drop; `long_lengths`: how long the over-long conversations that were counted are.

    Up to `max_length` every well-formed conversation is counted. Above it reading stopped early: those of which
    `counted` holds the length were read to their end and stand for all of them. Shares of tokens are estimates wherever
    not every over-long conversation was counted: how much the rest holds is then known from the sample alone.
    """
    is_long = pc.equal(ledger["fate"].cast(pa.string()), TOO_LONG)
    long_rows = pc.sum(is_long).as_py() or 0
    lengths = ledger["tokens"].filter(pc.invert(is_long)).drop_null().to_numpy()
    each = long_rows / max(1, len(counted))  # over-long conversations that one counted stands for
    all_rows, all_tokens = len(lengths) + long_rows, int(lengths.sum()) + each * int(counted.sum())
    sampled = len(counted) < long_rows
    limits = []
    for limit in sorted({*LIMITS, max_length}):
        exact = limit <= max_length
        fits, longer = lengths[lengths > limit], counted[counted > limit]
        rows_above = len(fits) + (long_rows if exact else each * len(longer))
        limits.append(
            {
                "limit": limit,
                "share_of_rows": rows_above / max(1, all_rows),
                "share_of_tokens": (int(fits.sum()) + each * int(longer.sum())) / max(1.0, all_tokens),
                "rows_estimated": sampled and not exact,
                "tokens_estimated": sampled,
            }
        )
    width = max_length / BARS
    inside = np.histogram(counted, max_length + width * np.arange(2 * BARS + 1))[0].tolist()
    histogram = {
        "counted": len(counted),
        "of": long_rows,
        "bin_tokens": width,
        "rows": inside,
        "rows_beyond": len(counted) - sum(inside),
    }
    return {"limits": limits, "long_lengths": histogram}


def tokens_per_role(sets: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, int]]:
    """Tokens of the kept conversations by who speaks: texts, and the control tokens around them.

    Kept conversations alternate and end with the assistant, so each role has half of the turns.
    """
    both = {name: sets["train"][name] + sets["eval"][name] for name in ("turns", "tokens", "supervised_tokens")}
    turns = both["turns"] // 2
    frame = {role: len(encode(tokenizer, [{"role": role, "content": ""}])) for role in ("user", "assistant")}
    assistant = both["supervised_tokens"] - turns  # each turn's <|im_end|> is supervised too
    user = both["tokens"] - assistant - turns * sum(frame.values())
    return {
        role: {"turns": turns, "text": text, "control": turns * frame[role]}
        for role, text in (("user", user), ("assistant", assistant))
    }
