"""Datasets that the `datasets` library opens: the hub's, folders, Parquet and Arrow files, streaming or not."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nbutils.core.errors import UserError
from nbutils.core.fetched import entry
from nbutils.core.files import resolve
from nbutils.data.batches import BATCH_ROWS, Batch, InMemory
from nbutils.data.settings import DatasetSpec
from nbutils.data.splits import parts, refuse

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
        return _opened(spec, _saved(spec, path), "")
    if path.suffix in BUILDERS:
        if not path.is_file():
            raise UserError(f"The dataset file {spec.path} does not exist; check its path in `datasets`.")
        refuse(spec, "a single file")
        data = _load(spec, BUILDERS[path.suffix], streaming, data_files=str(path), split=spec.split)
        return _opened(spec, data, "")
    if path.is_dir():
        refuse(spec, "a local folder", name=False, split=False)
        return _opened(spec, _load(spec, str(path), streaming, name=spec.name or None, split=spec.split), "")
    fetched = entry("dataset", spec.path, spec.revision)
    if fetched:
        data = _load(spec, str(fetched[0]), streaming, name=spec.name or None, split=spec.split)
        return _opened(spec, data, fetched[1]["commit"])
    revision = spec.revision if len(spec.revision) == 40 else _commit(spec)
    data = _load(spec, spec.path, streaming, name=spec.name or None, split=spec.split, revision=revision or None)
    return _opened(spec, data, revision)


def batches(data: Dataset | IterableDataset, columns: Sequence[str], spec: DatasetSpec) -> Iterator[Batch]:
    """The rows of the needed columns, batch by batch. UserError where a stream breaks off.

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
    for table in _streamed(spec, data.with_format("arrow").iter(BATCH_ROWS)):
        yield Batch(start, InMemory(table))
        start += table.num_rows


def _streamed(spec: DatasetSpec, items: Iterable[Any]) -> Iterator[Any]:
    """The items, with whatever goes wrong while they come in (network, a broken file) as a sentence."""
    number = 0
    try:
        for item in items:
            yield item
            number += 1
    except Exception as error:  # as many types as in `_load`
        cause = error.__cause__ or error
        raise UserError(
            f"The dataset {spec.label} broke off while streaming, after {number:,} batches: {_first_line(cause)}. Run "
            "again, or set streaming to false to download it first."
        ) from error


@dataclass(frozen=True)
class _Mapped:
    """Reads rows of a pickled `Dataset`."""

    state: bytes
    start: int
    stop: int

    def __call__(self) -> pa.Table:
        data = pickle.loads(self.state)
        return data[self.start : self.stop]


def _opened(spec: DatasetSpec, data: Any, revision: str) -> Opened:
    from datasets import Dataset

    if isinstance(data, Dataset):
        return Opened(data, data.column_names, len(data), revision, data._fingerprint)
    columns = data.column_names or list(next(_streamed(spec, data.take(1)), {}))
    return Opened(data, columns, None, revision, "")


def _saved(spec: DatasetSpec, path: Path) -> Dataset:
    from datasets import DatasetDict, concatenate_datasets, load_from_disk

    refuse(spec, "a saved dataset", split=False)
    found = load_from_disk(path)
    if not isinstance(found, DatasetDict):
        # One split alone: what it was called when it was saved, and `train`, which nobody has to ask for.
        found = {name: found for name in ("train", found.split and str(found.split)) if name}
    taken = parts(spec, {name: len(data) for name, data in found.items()})
    if spec.split in found:
        return found[spec.split]
    pieces = [found[name].select(range(start, stop)) for name, start, stop in taken]
    return pieces[0] if len(pieces) == 1 else concatenate_datasets(pieces)


def _load(spec: DatasetSpec, path: str, streaming: bool, **options: Any) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(path, streaming=streaming, **options)
    except Exception as error:  # `datasets` and the hub's client raise a dozen types, their HTTP library's among them
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise UserError(
            f"The dataset {spec.label} cannot be opened{offline}: {_first_line(error)}. Check path, name, split and "
            "revision in `datasets`, or collect it with `python -m nbutils fetch` where there is a network."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300].rstrip(".")


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
