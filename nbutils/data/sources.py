"""Opening datasets: `chitchat`, files read here line by line, and whatever the `datasets` library opens.

`chitchat` is the embedded corpus: `chitchat-dataset` from PyPI, human conversations about anything (MIT).
"""

from __future__ import annotations

import glob
import importlib.util
import json
import pickle
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from nbutils.core.errors import UserError
from nbutils.core.fetched import entry
from nbutils.core.files import resolve, sha256_of_file
from nbutils.core.network import hub_answers, offline
from nbutils.core.text import first_line
from nbutils.data import lines
from nbutils.data.fates import Turn, as_messages
from nbutils.data.row_batches import BATCH_ROWS, Batch, Source, in_memory
from nbutils.data.settings import DatasetSpec
from nbutils.data.shapes import LABELS, detect
from nbutils.data.splits import BUILDERS, FILE_SUFFIXES, files_of

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

CHITCHAT = "chitchat"

SAVED = (("dataset_dict.json",), ("state.json", "dataset_info.json"))
"""Files of which a folder that `save_to_disk` has written holds the ones or the others."""


def open_source(spec: DatasetSpec, streaming: bool) -> Source:
    """Opens a dataset and finds its shape. UserError where it cannot be found or its columns fit no shape."""
    path = resolve(spec.path)
    if spec.path == CHITCHAT:
        spec.refuse("the embedded corpus", "name", "split")
        table = pa.table({"messages": list(map(as_messages, chitchat_conversations()))})
        ((_, taken),) = spec.parts({"train": table.num_rows})
        pieces = table.slice(taken.start, len(taken)).to_batches(BATCH_ROWS)
        digest = sha256_of_file(chitchat_file())
        shape = detect(table.column_names, spec.label)
        return Source(spec, shape, table.column_names, len(taken), partial(in_memory, pieces), digest)
    if path.name.endswith(FILE_SUFFIXES) and not path.exists():
        raise UserError(f"The dataset file {spec.path} does not exist; check its path in `datasets`.")
    if any(all((path / name).is_file() for name in names) for names in SAVED):
        return _source(spec, _saved(spec, path))
    if files := files_of(path, spec):
        return lines.open_lines(path, files, spec)
    if builder := BUILDERS.get(path.suffix):
        spec.refuse("a single file", "name", "split")
        return _loaded(spec, builder, streaming, data_files=glob.escape(str(path)))
    if path.is_dir():
        from datasets import DownloadMode

        spec.refuse("a local folder")
        if glob.has_magic(str(path)):
            raise UserError(
                f"The folder {spec.path} cannot be read: the `datasets` library takes *, ? and [ in its path for a "
                "pattern. Rename it, or name its files one by one in `datasets`."
            )
        again = DownloadMode.REUSE_CACHE_IF_EXISTS  # or a folder with a card would be read as it was the first time
        return _loaded(spec, str(path), streaming, download_mode=again, verification_mode="no_checks")
    if path.is_file():
        raise UserError(f"The file {spec.path} ends in none of {', '.join(FILE_SUFFIXES)}; rename or convert it.")
    fetched = entry("dataset", spec.path, spec.revision)
    if fetched:
        return _loaded(spec, str(fetched[0]), streaming, fetched[1]["commit"])
    hub_answers()
    revision = spec.revision if len(spec.revision) == 40 else _commit(spec)
    return _loaded(spec, spec.path, streaming, revision, revision=revision or None)


def chitchat_file() -> Path:
    """The corpus as its package carries it. UserError where the package is missing."""
    found = importlib.util.find_spec("chitchat_dataset")  # found, not imported: the import would read 40 MB
    if found is None or found.origin is None:
        raise UserError(
            "The package chitchat-dataset, which holds the corpus 'chitchat', is missing; install it with pip."
        )
    return Path(found.origin).with_name("dataset.json")


def chitchat_conversations() -> Iterator[list[Turn]]:
    """Every conversation in file order: the first speaker is the user, the second the assistant.

    Further speakers keep a role of their own (`speaker 3`), so that such rows are dropped by a reason that names them.
    """
    for conversation in json.loads(chitchat_file().read_bytes()).values():
        names = chain(("user", "assistant"), map("speaker {}".format, count(3)))
        roles = defaultdict[str, str](names.__next__)
        yield [(roles[message["sender"]], message["text"]) for message in chain(*conversation["messages"])]


def _source(spec: DatasetSpec, data: Dataset | IterableDataset, revision: str = "") -> Source:
    from datasets import Dataset

    columns = data.column_names or list(next(_streamed(spec, data.take(1)), {}))
    labels = [name for name in LABELS if name in columns]
    first = data.select_columns(labels).take(lines.LOOKED_AT) if labels else ()
    shape = detect(columns, spec.label, [*_streamed(spec, first)])
    rows, fingerprint = (len(data), data._fingerprint) if isinstance(data, Dataset) else (None, "")
    texts = {name for name, kind in (data.features or {}).items() if re.search("string|Json|Image|Audio", str(kind))}
    wanted = [name for name in columns if name in texts or name in shape.known]  # texts that are not read are counted
    batches = partial(_batches, spec, data.select_columns(wanted))
    return Source(spec, shape, columns, rows, batches, fingerprint, revision)


def _batches(spec: DatasetSpec, data: Dataset | IterableDataset) -> Iterator[Batch]:
    """The rows batch by batch. UserError where a stream breaks off.

    What is in files travels to a worker as the names of the files, is mapped into memory there for one batch, and let
    go of again: memory stays flat however long the files are.
    """
    from datasets import Dataset

    data = data.with_format("arrow")
    if not isinstance(data, Dataset):
        yield from in_memory(_streamed(spec, data.iter(BATCH_ROWS)))
        return
    state = pickle.dumps(data)
    for start in range(0, len(data), BATCH_ROWS):
        yield Batch(start, partial(_mapped, state, slice(start, min(start + BATCH_ROWS, len(data)))))


def _mapped(state: bytes, rows: slice) -> pa.Table:
    return pickle.loads(state)[rows]


def _streamed(spec: DatasetSpec, items: Iterable[Any]) -> Iterator[Any]:
    """The items, with whatever goes wrong while they come in (network, a broken file) as a sentence."""
    try:
        yield from items
    except Exception as error:  # as many types as in `_loaded`
        cause = error.__cause__ or error
        raise UserError(
            f"The dataset {spec.label} broke off while streaming: {first_line(cause)}. Run again, or set streaming to "
            "false to download it first."
        ) from error


def _saved(spec: DatasetSpec, path: Path) -> Dataset:
    from datasets import DatasetDict, concatenate_datasets, load_from_disk

    spec.refuse("a saved dataset", "name")
    try:
        found = load_from_disk(path)
    except Exception as error:  # as many types as in `_loaded`
        raise UserError(
            f"The saved dataset {spec.label} cannot be read ({first_line(error)}): save it again."
        ) from error
    if not isinstance(found, DatasetDict):
        # One split alone: what it was called when it was saved, and `train`, which nobody has to ask for.
        found = {"train": found, str(found.split or "train"): found}
    taken = spec.parts({name: len(data) for name, data in found.items()})
    if spec.split in found:
        return found[spec.split]
    pieces = [found[name].select(rows) for name, rows in taken]
    return pieces[0] if len(pieces) == 1 else concatenate_datasets(pieces)


def _loaded(spec: DatasetSpec, path: str, streaming: bool, commit: str = "", **options: Any) -> Source:
    from datasets import load_dataset

    try:
        data = load_dataset(path, spec.name or None, streaming=streaming, split=spec.split, **options)
    except Exception as error:  # `datasets` and the hub's client raise a dozen types, their HTTP library's among them
        where = offline()
        advice = (
            "Check path, name, split and revision in `datasets`, or collect it with `python -m nbutils fetch` where "
            "there is a network"
        )
        if resolve(spec.path).exists():
            where, advice = "", "Mend or convert its files, or name the right ones in `datasets`"
        raise UserError(
            f"The dataset {spec.label} cannot be opened{where}: {first_line(error.__cause__ or error)}. {advice}."
        ) from error
    return _source(spec, data, commit)


def _commit(spec: DatasetSpec) -> str:
    """The commit that a hub dataset's revision stands for now, so that the run's record pins it; '' if unreachable."""
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
