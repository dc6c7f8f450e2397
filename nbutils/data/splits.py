"""Which files here a path stands for: itself, or the files of a folder that are of the split."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from nbutils.core.errors import UserError
from nbutils.core.files import files_below
from nbutils.data.settings import DatasetSpec

SEPARATORS = {".csv": ",", ".tsv": "\t"}
LINE_SUFFIXES = tuple(kind + packed for kind in (".jsonl", ".ndjson", *SEPARATORS) for packed in ("", ".gz", ".zst"))
BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
"""Endings of what the `datasets` library reads, by its names of them."""
FILE_SUFFIXES = (*LINE_SUFFIXES, ".json", *BUILDERS)
"""Of a `path` that is a file: a hub id may hold a dot too."""
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What the `datasets` library takes as the name of each usual split in the name of a file or folder."""
ABOUT = ("dataset_info", "dataset_infos", "metadata")
"""Names of JSON files in a dataset's folder that hold no rows."""
_SHARD = r"(?:[-._ ]?\d+(?:[-._ ]of[-._ ]\d+)?(?:-[0-9a-f]+)?)?"


def files_of(path: Path, spec: DatasetSpec) -> list[Path]:
    """The files read here that a path stands for: itself, or a folder's files of the split.

    A folder in which no file is named for the split is all `train` (but for files that are named for another split).
    Empty for Parquet, Arrow and anything else, which the `datasets` library opens. UserError where the files are of
    several kinds: it would read one of them.
    """
    if not path.is_dir():
        return [path] if path.name.endswith((*LINE_SUFFIXES, ".json")) else []
    if spec.name or _configured(path):
        return []
    below = [file.relative_to(path) for file in files_below(path) if file.stem not in ABOUT]
    below = [file for file in below if not any(name.startswith((".", "__")) for name in file.parts)]
    below = [file for file in below if file.name.endswith(FILE_SUFFIXES)]
    mine = [file for file in below if names_split(file, spec.whole_split)]
    if not mine and spec.whole_split == "train":
        mine = [file for file in below if not any(names_split(file, other) for other in WORDS)]
    kinds = {"" if file.name.endswith(LINE_SUFFIXES) else file.suffix: file for file in mine}
    if len(kinds) > 1:
        raise UserError(
            f"The folder {spec.path} holds {' and '.join(map(str, kinds.values()))} for the split "
            f"'{spec.whole_split}'; name the one file to read in `datasets`, or move the other away."
        )
    return [] if kinds.keys() & BUILDERS.keys() else [path / file for file in mine]


def _configured(folder: Path) -> bool:
    """Whether a dataset's card says itself which files make which split, as the hub's do."""
    card = folder / "README.md"
    if not card.is_file():
        return False
    text = card.read_text(encoding="utf-8", errors="replace")
    return text.startswith("---") and "\nconfigs:" in text.split("\n---", 1)[0]


def names_split(path: PurePath, split: str) -> bool:
    """Whether a file (relative to the dataset's folder) is named for the split, or is in a folder of that name.

    `train.jsonl`, `train-00000-of-00002.jsonl`, `chats_train.jsonl` and `train/chats.jsonl` are; `train_old.jsonl` is
    something else.
    """
    words = "|".join(map(re.escape, WORDS.get(split, (split,))))
    return any(re.fullmatch(words, part) for part in path.parent.parts) or bool(
        re.fullmatch(rf"(?:.*[-._ ])?(?:{words}){_SHARD}", unpacked(path).stem)
    )


def unpacked(path: PurePath) -> PurePath:
    """The file's name without what says that it is compressed."""
    return PurePath(path.name.removesuffix(".gz").removesuffix(".zst"))
