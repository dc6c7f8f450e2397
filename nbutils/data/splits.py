"""Which files here a path stands for: itself, or the files of a folder that are of the split."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from nbutils.core.errors import UserError
from nbutils.data.messages import printable
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
NEARLY = rf"(?i)({'|'.join(map(re.escape, FILE_SUFFIXES))})(\.(gz|zst|bz2|xz|zip))?$"
"""Names of files that are read, or nearly so."""
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
    shown = (each.relative_to(path) for each in sorted(path.rglob("*")) if each.stem not in ABOUT)
    below = [each for each in shown if not any(name.startswith((".", "__")) for name in each.parts)]
    for each in below:
        if why := _unread(path, each):
            raise UserError(f"{str(each)!a} in the folder {spec.path} would not be read: {why}.")
    below = [each for each in below if each.name.endswith(FILE_SUFFIXES) and (path / each).is_file()]
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


def _unread(folder: Path, below: Path) -> str:
    """Why a file or link in a dataset's folder is not read, though it looks as if it were to be; or nothing."""
    there, name = folder / below, below.name
    if there.is_symlink() and not there.is_file():
        return "it is a link to a folder, or to nothing; put the files themselves there"
    if there.is_dir() or not re.search(NEARLY, name):
        return ""
    if not name.endswith(FILE_SUFFIXES):
        return f"a name ends in one of {', '.join(FILE_SUFFIXES)}; rename it, unpack it, or move it away"
    return "" if printable(name) == name else "its name is no UTF-8; rename it"


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
    name = re.compile(rf"(?:.*[-._ ])?(?:{words}){_SHARD}", re.IGNORECASE)
    folders = any(re.fullmatch(words, part, re.IGNORECASE) for part in path.parent.parts)
    return folders or bool(name.fullmatch(unpacked(path).stem))


def unpacked(path: PurePath) -> PurePath:
    """The file's name without what says that it is compressed."""
    return PurePath(path.name.removesuffix(".gz").removesuffix(".zst"))
