"""JSONL and JSON files, row by row: what is broken in one row stays in that row."""

from __future__ import annotations

import io
import re
from codecs import BOM_UTF8 as BOM
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePath

import pyarrow as pa

from nbutils.core.errors import UserError
from nbutils.core.files import sha256_of_file, sha256_of_json, shown
from nbutils.data.documents import HEAD, Rows, open_document
from nbutils.data.messages import Malformed
from nbutils.data.row_batches import BATCH_ROWS, Batch, Source, in_memory
from nbutils.data.settings import DatasetSpec
from nbutils.data.shapes import LINE, Shape, detect, fitting, parse_line

LINE_ENDINGS = tuple(kind + packed for kind in (".jsonl", ".ndjson") for packed in ("", ".gz", ".zst"))
BUILDERS = {
    ".parquet": {"path": "parquet"},
    ".arrow": {"path": "arrow"},
    ".csv": {"path": "csv"},
    ".tsv": {"path": "csv", "sep": "\t"},
}
"""Endings of what the `datasets` library reads, and how it reads a single file."""
BATCH_BYTES = 16 * 2**20
"""Raw bytes of a batch at most: one row can be long."""
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What the `datasets` library takes as the name of each usual split in the name of a file or folder."""
_SHARD = r"(?:[-._ ]?\d+(?:[-._ ]of[-._ ]\d+)?(?:-[0-9a-f]+)?)?"
LOOKED_AT = 200
"""Rows that are not broken from which the shape is found."""


def files_of(path: Path, spec: DatasetSpec) -> list[Path]:
    """The files read here that a path stands for: itself, or a folder's JSONL files of the split.

    A folder with nothing but JSONL files, none of them named for the split, is all `train` (but for files that are
    named for another split). Empty for anything else, which the `datasets` library opens. UserError where files of
    another kind are named for the split too.
    """
    if not path.is_dir():
        return [path] if path.name.endswith((*LINE_ENDINGS, ".json")) else []
    if spec.name or _configured(path):
        return []
    below = [file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file()]
    below = [file for file in below if not any(name.startswith((".", "__")) for name in file.parts)]
    of_lines = [file for file in below if file.name.endswith(LINE_ENDINGS)]
    others = [file for file in below if file.name.endswith(tuple(BUILDERS))]
    named = [file for file in below if names_split(file, spec.whole_split)]
    mine = [file for file in of_lines if file in named]
    clash = [file for file in named if file.name.endswith((*BUILDERS, ".json"))]
    if mine and clash:
        raise UserError(
            f"The folder {spec.path} holds {mine[0]} and {clash[0]} for the split '{spec.whole_split}'; name the one "
            "file to read in `datasets`, or move the other away."
        )
    if not mine and not others and spec.whole_split == "train":
        mine = [file for file in of_lines if not any(names_split(file, other) for other in WORDS)]
    return [path / file for file in mine]


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
    stem = PurePath(path.name.removesuffix(".gz").removesuffix(".zst")).stem
    return any(re.fullmatch(words, part) for part in path.parent.parts) or bool(
        re.fullmatch(rf"(?:.*[-._ ])?(?:{words}){_SHARD}", stem)
    )


def open_lines(path: Path, files: Sequence[Path], spec: DatasetSpec) -> Source:
    """Opens JSONL files (also compressed with gzip), or a JSON file with a list of rows. UserError if no shape fits."""
    is_folder = path.is_dir()
    spec.refuse("a local folder" if is_folder else "a single file", "name", *(() if is_folder else ("split",)))
    readers = [_rows_of(file) for file in files]

    def read(start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        return islice((row for rows in readers for row in rows()), start, stop)

    size = sum(1 for _ in read())
    ((_, taken),) = spec.parts({spec.whole_split: size})  # of a folder, the files make up the split already
    mine = partial(read, taken.start, taken.stop)

    def batches() -> Iterator[Batch]:
        return in_memory(pa.table({LINE: pa.array(group, pa.large_binary())}) for group in _grouped(mine()))

    shape, columns = _shape_of(mine(), spec.label)
    digest = sha256_of_json([sha256_of_file(file) for file in files])
    names = tuple(str(file.relative_to(path)) for file in files) if is_folder else ()
    return Source(spec, shape, columns, len(taken), batches, digest, files=names)


def _rows_of(path: Path) -> Rows:
    found = open_document(path) if path.suffix == ".json" or _is_list(path) else None
    return found or partial(_lines_of, path)


def _lines_of(path: Path) -> Iterator[bytes]:
    try:
        with io.BufferedReader(pa.input_stream(path), BATCH_BYTES) as file:  # unpacks what is compressed
            yield from (line for line in file if line.strip())
    except OSError as error:
        raise UserError(f"The dataset file {shown(path)} is damaged ({error}); fetch it again.") from error


def _is_list(path: Path) -> bool:
    """Whether a file of lines, by its name, holds one JSON list instead; what is compressed begins otherwise."""
    with path.open("rb") as file:
        return file.read(HEAD).removeprefix(BOM).lstrip()[:1] == b"["


def _grouped(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    size = 0
    for line in lines:
        group.append(line)
        size += len(line)
        if len(group) == BATCH_ROWS or size > BATCH_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _shape_of(lines: Iterable[bytes], where: str) -> tuple[Shape, list[str]]:
    """The shape that most of the first lines have, and the names of the columns seen; broken lines do not count."""
    votes: Counter[tuple[str, ...]] = Counter()
    broken = ""
    for line in lines:
        try:
            votes[tuple(parse_line(line))] += 1
        except Malformed as error:
            broken = broken or str(error)
        if votes.total() == LOOKED_AT:
            break
    if not votes:
        why = f"no row of it is a JSON object (the first: {broken})" if broken else "it holds no rows"
        raise UserError(f"The dataset {where} cannot be read: {why}. Give one JSON object a line, or a list of them.")
    seen = list(dict.fromkeys(chain.from_iterable(votes)))
    fit = [columns for columns, _ in votes.most_common() if fitting(columns)]
    return detect((*fit, seen)[0], where), seen
