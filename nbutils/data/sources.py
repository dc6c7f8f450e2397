"""Opening datasets: `chitchat`, the hub, folders and files, each as a sequence of batches of numbered rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from nbutils.core.errors import UserError
from nbutils.core.files import resolve, sha256_of_file, sha256_of_json
from nbutils.data import chitchat, hub, lines
from nbutils.data.batches import Batch, of_table
from nbutils.data.settings import DatasetSpec
from nbutils.data.shapes import Shape, detect
from nbutils.data.splits import part, refuse

FILE_ENDINGS = (*lines.LINE_ENDINGS, ".json", *hub.BUILDERS)
"""Of a `path` that is a file: a hub id may hold a dot too."""


@dataclass(frozen=True)
class Source:
    """A dataset that is open: how its rows are written, how many they are (None: not known yet), and its batches.

    `revision` is the commit of a hub dataset, `fingerprint` a hash of the content where there is one to take, `files`
    the names of the files that were picked from a folder here.
    """

    spec: DatasetSpec
    shape: Shape
    columns: list[str]
    rows: int | None
    revision: str
    fingerprint: str
    batches: Callable[[], Iterator[Batch]]
    files: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name of this source in the ledger."""
        return self.spec.label


def open_source(spec: DatasetSpec, streaming: bool) -> Source:
    """Opens a dataset and finds its shape. UserError where it cannot be found or its columns fit no shape."""
    path = resolve(spec.path)
    if spec.path == chitchat.NAME:
        refuse(spec, "the embedded corpus")
        table = chitchat.table()
        start, stop = part(spec, table.num_rows)
        table = table.slice(start, stop - start)
        shape = detect(table.column_names, spec.label)
        digest = sha256_of_file(chitchat.file())
        return Source(spec, shape, table.column_names, table.num_rows, "", digest, partial(of_table, table))
    files = lines.files_of(path, spec)
    if not files:
        return _of_datasets(spec, streaming)
    if not path.exists():
        raise UserError(f"The dataset file {spec.path} does not exist; check its path in `datasets`.")
    is_folder = path.is_dir()
    refuse(spec, "a local folder" if is_folder else "a single file", split=not is_folder)
    # Of a folder, the files make up the split already.
    found = lines.open_lines(files, spec.model_copy(update={"split": spec.split.replace(spec.whole_split, "train", 1)}))
    digest = sha256_of_json([sha256_of_file(file) for file in files])
    names = tuple(str(file.relative_to(path)) for file in files) if is_folder else ()
    return Source(spec, found.shape, found.columns, found.rows, "", digest, found.batches, names)


def _of_datasets(spec: DatasetSpec, streaming: bool) -> Source:
    opened = hub.load(spec, streaming)
    shape = detect(opened.columns, spec.label)
    batches = partial(hub.batches, opened.data, shape.used(opened.columns), spec)
    return Source(spec, shape, opened.columns, opened.rows, opened.revision, opened.fingerprint, batches)
