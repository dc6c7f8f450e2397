"""Small datasets of every shape, and the data stage run on them without a notebook."""

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from nbutils.core.errors import UserError
from nbutils.core.stages import spec
from nbutils.data.contamination import index_tasks
from nbutils.data.fates import as_messages
from nbutils.data.filter import filter_sources, make_tokenizer
from nbutils.data.row_batches import Source
from nbutils.data.row_filter import loaded_tokenizer
from nbutils.data.settings import DatasetSpec
from nbutils.data.shapes import Row, read_rows
from nbutils.data.sources import open_source
from nbutils.data.summary import write_summary
from nbutils.pipeline.parameters import settings_of


class Made(NamedTuple):
    """What one run of the data stage made."""

    folder: Path
    sources: list[Source]
    summary: dict
    ledger: pd.DataFrame
    tokenizer: Any

    def rows(self, name: str) -> list[dict]:
        """The rows of `train`, `eval` or `too_long`."""
        from datasets import load_from_disk

        return load_from_disk(self.folder / name).to_list()

    @property
    def fates(self) -> list[str]:
        """The fate of each raw row."""
        return self.ledger["fate"].tolist()


def opened(path: Path | str, *, streaming=False, **given) -> Source:
    """The dataset at a path, open."""
    return open_source(DatasetSpec(path=str(path), **given), streaming)


def rows_read(source: Source) -> list[Row]:
    """What each row was read as, and the keys that were not."""
    return [row for batch in source.batches() for row in read_rows(batch.read(), source.shape)]


def settings_for(run: Path, datasets: Sequence, **values):
    """Settings of a run over the datasets; what is not given is as in the notebook, or small."""
    small = {"max_length": 200, "eval_fraction": 0.3, "data_processes": 1}
    return settings_of(spec("data"), small | {"run_dir": str(run), "datasets": list(datasets)} | values)


def make(run: Path, datasets: Sequence, *, same_tokenizer=False, **values) -> Made:
    """Runs the data stage; `run` is the run folder. `same_tokenizer` takes the one that stands there already."""
    settings = settings_for(run, datasets, **values)
    folder = settings.run_path / "data"
    sources = [open_source(one, settings.streaming) for one in settings.datasets]
    if same_tokenizer:
        tokenizer = loaded_tokenizer(str(folder / "tokenizer"))
    else:
        tokenizer = make_tokenizer(settings, sources, folder)
    items = index_tasks(settings, folder)
    summary = write_summary(folder, settings, sources, tokenizer, filter_sources(settings, sources, folder), items)
    return Made(folder, sources, summary, pd.read_parquet(folder / "ledger.parquet"), tokenizer)


def make_of(folder: Path, rows: Sequence, **values) -> Made:
    """Runs the data stage on rows in a JSONL file; the run folder is `folder`/run."""
    return make(folder / "run", [write_lines(folder / "a.jsonl", rows)], **values)


def refusal(call: Callable, *arguments, **options) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(UserError, match=r"\A[^\n]+\Z") as error:
        call(*arguments, **options)
    return str(error.value)


def jsonl(rows: Iterable) -> bytes:
    """A line for each row; one that is bytes stands as it is."""
    texts = (row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows)
    return b"".join(text + b"\n" for text in texts)


def write_lines(path: Path, rows: Iterable) -> str:
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jsonl(rows))
    return str(path)


def chat(*texts: str) -> dict:
    """A row in the shape `messages`: user and assistant in turn."""
    return {"messages": as_messages(zip(cycle(("user", "assistant")), texts, strict=False))}


def chats(number: int, tag="") -> list[dict]:
    """Different two-turn conversations in the shape `messages`."""
    return [chat(f"What is {tag}{i} plus {i}?", f"It is {tag}{2 * i}, I think.") for i in range(number)]


def nested(depth: int) -> bytes:
    """Content in parts, in parts, in parts …"""
    return b'[{"type": "text", "text": ' * depth + b'"Hi"' + b"}]" * depth
