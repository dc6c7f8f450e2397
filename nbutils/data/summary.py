"""What `data/summary.json` says: the fates reconciled with the sources, the sets, the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbutils.core.chatml import IM_END, IM_START, PAD, encode
from nbutils.core.errors import UserError
from nbutils.core.files import shown, write_json
from nbutils.data.driver import Filtered
from nbutils.data.settings import DataSettings
from nbutils.data.sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCHEMA = 1
CONTROLS = {"im_start": IM_START, "im_end": IM_END, "pad": PAD}


def write_summary(
    folder: Path,
    settings: DataSettings,
    sources: Sequence[Source],
    tokenizer: PreTrainedTokenizerBase,
    filtered: Filtered,
    contamination: dict[str, Any] | None,
) -> dict[str, Any]:
    """Writes and returns `summary.json`. UserError where rows are unaccounted for, or a set would be empty."""
    found = filtered.facts
    for source in sources:
        read = filtered.read.get(source.label, 0)
        if source.rows not in (None, read):
            raise UserError(
                f"The dataset {source.label} had {source.rows:,} rows when it was opened, and {read:,} "
                "were read: something changed it meanwhile; run this notebook again."
            )
    for side in ("train", "eval"):
        if not found[side]["rows"]:
            raise UserError(
                f"No conversation is left for the {side} set ({shown(folder / 'ledger.parquet')} says why); "
                "raise max_length, change eval_fraction, or give more data."
            )
    summary = {
        "schema": SCHEMA,
        **found,
        **filtered.costs.found(),
        "tokens_per_role": tokens_per_role(found, tokenizer),
        "max_length": settings.max_length,
        "split_seed": settings.split_seed,
        "eval_fraction": settings.eval_fraction,
        "datasets": [described(source, filtered) for source in sources],
        "contamination": contamination,
        "tokenizer": {
            "base_model": settings.base_model,
            "pieces": len(tokenizer),
            **{key: tokenizer.convert_tokens_to_ids(token) for key, token in CONTROLS.items()},
        },
    }
    write_json(folder / "summary.json", summary)
    return summary


def described(source: Source, filtered: Filtered) -> dict[str, Any]:
    """A dataset as the summary names it; `rows` counts the rows taken, `rows_in_source` all that it has.

    `files` names what was taken of a folder whose line files were picked here, relative to it.
    """
    spec = source.spec
    return {
        "path": spec.path,
        "name": spec.name,
        "split": spec.split,
        "fraction": spec.fraction,
        "shape": source.shape.name,
        "rows": filtered.taken.get(source.label, 0),
        "rows_in_source": filtered.read.get(source.label, 0),
        "files": source.files,
        "revision": source.revision,
        "fingerprint": source.fingerprint,
    }


def tokens_per_role(found: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, int]]:
    """Tokens of the kept conversations by who speaks: texts, and the control tokens around them.

    Kept conversations alternate and end with the assistant, so each role has half of the turns.
    """
    kept = [found["train"], found["eval"]]
    turns = sum(side["turns"] for side in kept) // 2
    tokens = sum(side["tokens"] for side in kept)
    supervised = sum(side["supervised_tokens"] for side in kept)
    frame = {role: len(encode(tokenizer, [{"role": role, "content": ""}])) for role in ("user", "assistant")}
    assistant = supervised - turns  # each turn's <|im_end|> is supervised too
    user = tokens - assistant - turns * sum(frame.values())
    return {
        "user": {"turns": turns, "text": user, "control": turns * frame["user"]},
        "assistant": {"turns": turns, "text": assistant, "control": turns * frame["assistant"]},
    }
