"""Datasets that the `datasets` library opens: the hub's, folders, Parquet and Arrow files, streaming or not."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nbutils.core.errors import UserError
from nbutils.core.fetched import entry
from nbutils.core.files import resolve
from nbutils.data.batches import BATCH_ROWS, Batch, InMemory
from nbutils.data.settings import DatasetSpec

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True)
class Opened:
    """A dataset of the library, its columns, its number of rows (None while streaming), and where it comes from."""

    data: Dataset | IterableDataset
    columns: list[str]
    rows: int | None
    revision: str
    fingerprint: str


def load(spec: DatasetSpec, streaming: bool) -> Opened:
    """Opens a dataset by path or hub id. UserError where it, its configuration or its split cannot be found."""
    path = resolve(spec.path)
    if (path.is_dir() and (path / "state.json").is_file()) or (path / "dataset_dict.json").is_file():
        return _opened(_saved(spec, path), "")
    if path.suffix in BUILDERS:
        if not path.is_file():
            raise UserError(f"The dataset file {spec.path} does not exist; check its path in `datasets`.")
        return _opened(_load(spec, BUILDERS[path.suffix], streaming, data_files=str(path), split="train"), "")
    if path.is_dir():
        return _opened(_load(spec, str(path), streaming, name=spec.name or None, split=spec.split), "")
    fetched = entry("dataset", spec.path, spec.revision)
    if fetched:
        data = _load(spec, str(fetched[0]), streaming, name=spec.name or None, split=spec.split)
        return _opened(data, fetched[1]["commit"])
    revision = spec.revision if len(spec.revision) == 40 else _commit(spec)
    data = _load(spec, spec.path, streaming, name=spec.name or None, split=spec.split, revision=revision or None)
    return _opened(data, revision)


def batches(data: Dataset | IterableDataset, columns: Sequence[str]) -> Iterator[Batch]:
    """The rows of the needed columns, batch by batch.

    What lies in files travels to a worker as the names of the files, is mapped into memory there for one batch, and let
    go of again: memory stays flat however long the files are.
    """
    from datasets import Dataset

    data = data.select_columns(list(columns))
    if isinstance(data, Dataset):
        state = pickle.dumps(data.with_format("arrow"))
        for start in range(0, len(data), BATCH_ROWS):
            yield Batch(start, _Mapped(state, start, min(start + BATCH_ROWS, len(data))))
        return
    start = 0
    for table in data.with_format("arrow").iter(BATCH_ROWS):
        yield Batch(start, InMemory(table))
        start += table.num_rows


@dataclass(frozen=True)
class _Mapped:
    """Reads rows of a pickled `Dataset`."""

    state: bytes
    start: int
    stop: int

    def __call__(self) -> pa.Table:
        data = pickle.loads(self.state)
        return data[self.start : self.stop]


def _opened(data: Any, revision: str) -> Opened:
    from datasets import Dataset

    if isinstance(data, Dataset):
        return Opened(data, data.column_names, len(data), revision, data._fingerprint)
    columns = data.column_names or list(next(iter(data.take(1)), {}))
    return Opened(data, columns, None, revision, "")


def _saved(spec: DatasetSpec, path: Path) -> Dataset:
    from datasets import DatasetDict, load_from_disk

    found = load_from_disk(path)
    if isinstance(found, DatasetDict):
        if spec.split not in found:
            raise UserError(f"The dataset {spec.path} has no split '{spec.split}'; it has {', '.join(found)}.")
        return found[spec.split]
    return found


def _load(spec: DatasetSpec, path: str, streaming: bool, **options: Any) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(path, streaming=streaming, **options)
    except Exception as error:  # `datasets` and the hub's client raise a dozen types, their HTTP library's among them
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        first = str(error).strip().split("\n")[0][:300].rstrip(".")
        raise UserError(
            f"The dataset {spec.label} cannot be opened{offline}: {first}. Check path, name, split and revision in "
            "`datasets`, or collect it with `python -m nbutils fetch` where there is a network."
        ) from error


def _commit(spec: DatasetSpec) -> str:
    """The commit that a hub dataset's revision stands for now, so that the run's record pins it; '' if unreachable."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().dataset_info(spec.path, revision=spec.revision or None).sha or ""
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:  # `load_dataset` would take a cached one instead
        at = f" at revision '{spec.revision}'" if spec.revision else ""
        raise UserError(
            f"The hub has no dataset {spec.path}{at}; check path and revision in `datasets`, and HF_TOKEN for what "
            "needs a login."
        ) from error
    except Exception:  # whatever is wrong, `load_dataset` says it, or finds the dataset in its cache
        return spec.revision
