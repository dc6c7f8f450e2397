"""Splits and slices of datasets: which files of a folder belong to a split, and which rows to a slice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

from nbutils.core.errors import UserError
from nbutils.data.settings import DatasetSpec

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What the `datasets` library takes as the name of each usual split in the name of a file or folder."""
_SHARD = r"(?:[-._ ]?\d+(?:[-._ ]of[-._ ]\d+)?(?:-[0-9a-f]+)?)?"


def names_split(path: PurePath, split: str) -> bool:
    """Whether a file (relative to the dataset's folder) is named for the split, or lies in a folder of that name.

    `train.jsonl`, `train-00000-of-00002.jsonl`, `chats_train.jsonl` and `train/chats.jsonl` are; `train_old.jsonl` is
    something else.
    """
    words = "|".join(map(re.escape, WORDS.get(split, (split,))))
    stem = re.sub(r"\.(jsonl|ndjson|json|parquet|arrow|csv|tsv)(\.gz)?$", "", path.name)
    return any(re.fullmatch(words, part) for part in path.parent.parts) or bool(
        re.fullmatch(rf"(?:.*[-._ ])?(?:{words}){_SHARD}", stem)
    )


def names_other_split(path: PurePath, split: str) -> bool:
    """Whether a file is named for a usual split that is not this one."""
    return any(names_split(path, other) for other in WORDS if other != split)


def refuse(spec: DatasetSpec, kind: str, *, name: bool = True, split: bool = True) -> None:
    """UserError where a local dataset is asked for what its kind does not have, rather than passing it over.

    A local one never has a revision; `name` and `split` say whether this kind lacks those too.
    """
    lacking = {"revision": ("revisions", spec.revision)}
    if name:
        lacking["name"] = ("configurations", spec.name)
    if split:
        lacking["split"] = ("splits", spec.split if spec.whole_split != "train" else "")
    for field, (what, value) in lacking.items():
        if value:
            raise UserError(
                f"The dataset {spec.path} is {kind}, which has no {what}, but its {field} is '{value}'; take {field} "
                "out of `datasets`" + (", or slice it as train[:1000]." if field == "split" else ".")
            )


def parts(spec: DatasetSpec, sizes: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """What a split stands for, such as `train[:10%]`, as (name, first row, row behind the last); `sizes` in rows.

    UserError for a split that is not there or a slice that goes beyond it.
    """
    if spec.split in sizes:
        return [(spec.split, 0, sizes[spec.split])]
    from datasets import ReadInstruction

    try:
        found = ReadInstruction.from_spec(spec.split).to_absolute(dict(sizes))
    except (ValueError, AssertionError) as error:
        if "[" in spec.split and spec.whole_split in sizes:
            raise UserError(f"The dataset {spec.path} cannot be sliced as {spec.split}: {error}.") from None
        raise UserError(
            f"The dataset {spec.path} has no split '{spec.split}'; it has {', '.join(sizes)}. Name one in `datasets`."
        ) from None
    taken = []
    for one in found:
        start, stop = one.from_ or 0, sizes[one.splitname] if one.to is None else one.to
        taken.append((one.splitname, start, max(start, stop)))
    return taken


def part(spec: DatasetSpec, rows: int) -> tuple[int, int]:
    """First row, and the row behind the last, of what the split takes of something without splits."""
    ((_, start, stop),) = parts(spec, {"train": rows})
    return start, stop
