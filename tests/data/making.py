"""Small datasets of every shape, and the data stage run on them without a notebook."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nbutils.data.batches import Source
from nbutils.data.contamination import index_tasks
from nbutils.data.filter import filter_sources
from nbutils.data.row_filter import loaded_tokenizer
from nbutils.data.settings import DataSettings
from nbutils.data.sources import open_source
from nbutils.data.summary import write_summary
from nbutils.data.tokenizer import make_tokenizer

Turns = Sequence[tuple[str, str]]

DEFAULTS: dict[str, Any] = {
    "base_model": "tiny",
    "base_revision": "",
    "streaming": False,
    "max_length": 200,
    "eval_fraction": 0.3,
    "split_seed": 0,
    "contamination_tasks": [],
    "contamination_words": 13,
    "task_path": "",
    "seed": 0,
    "data_processes": 1,
}


@dataclass(frozen=True)
class Made:
    """What one run of the data stage made."""

    folder: Path
    sources: list[Source]
    summary: dict[str, Any]
    ledger: pd.DataFrame

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of `train`, `eval` or `too_long`."""
        from datasets import load_from_disk

        return load_from_disk(self.folder / name).to_list()

    @property
    def kept(self) -> dict[tuple[str, int], dict[str, Any]]:
        """All kept rows by origin."""
        return {(row["source"], row["index"]): row for name in ("train", "eval") for row in self.rows(name)}

    def fate(self, index: int, source: str | None = None) -> str:
        """The fate of one raw row."""
        rows = self.ledger[self.ledger["index"] == index]
        rows = rows[rows["source"] == source] if source else rows
        assert len(rows) == 1
        return str(rows["fate"].iloc[0])


def settings_for(run: Path, datasets: Sequence[Any], **values: Any) -> DataSettings:
    """Settings of a run over the datasets."""
    return DataSettings.checked(DEFAULTS | {"run_dir": str(run), "datasets": list(datasets)} | values)


def make(run: Path, datasets: Sequence[Any], *, same_tokenizer: bool = False, **values: Any) -> Made:
    """Runs the data stage; `run` is the run folder. `same_tokenizer` takes the one that stands there already."""
    settings = settings_for(run, datasets, **values)
    folder = settings.run_path / "data"
    folder.mkdir(parents=True, exist_ok=True)
    sources = [open_source(spec, settings.streaming) for spec in settings.datasets]
    if same_tokenizer:
        tokenizer = loaded_tokenizer(str(folder / "tokenizer"))
    else:
        tokenizer = make_tokenizer(settings, sources, folder)
    items = index_tasks(settings, folder)
    summary = write_summary(folder, settings, sources, tokenizer, filter_sources(settings, sources, folder), items)
    return Made(folder, sources, summary, pd.read_parquet(folder / "ledger.parquet"))


def messages(turns: Turns) -> list[dict[str, str]]:
    """Turns as {role, content}."""
    return [{"role": role, "content": text} for role, text in turns]


def write_lines(path: Path, rows: Sequence[Any]) -> str:
    """A JSONL file; a row that is bytes stands as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return str(path)


def chats(number: int, tag: str = "") -> list[dict[str, Any]]:
    """Different two-turn conversations in the shape `messages`."""
    return [
        {
            "messages": messages(
                [("user", f"What is {tag}{i} plus {i}?"), ("assistant", f"It is {tag}{2 * i}, I think.")]
            )
        }
        for i in range(number)
    ]


QUESTION, ANSWER = "What is the capital of {}?", "The capital of {} is {}."
COUNTRIES = {
    "France": "Paris", "Japan": "Tokyo", "Peru": "Lima", "Kenya": "Nairobi", "Norway": "Oslo",
    "Chile": "Santiago", "Egypt": "Cairo", "Cuba": "Havana", "Nepal": "Kathmandu", "Iran": "Tehran",
}  # fmt: skip


def rows_of(shape: str) -> list[dict[str, Any]]:
    """The same ten conversations in one of the five shapes; the words differ by shape, so that none is a duplicate."""
    rows = []
    for country, city in COUNTRIES.items():
        asked = f"({shape}) {QUESTION.format(country)}"
        answered = ANSWER.format(country, city)
        rows.append(
            {
                "messages": {"messages": messages([("system", "Be kind."), ("user", asked), ("assistant", answered)])},
                "sharegpt": {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]},
                "alpaca": {"instruction": asked, "input": "", "output": answered},
                "completion": {"prompt": asked, "completion": answered},
                "preference": {"prompt": asked, "chosen": answered, "rejected": "No idea."},
            }[shape]
        )
    return rows


FIVE = ("messages", "sharegpt", "alpaca", "completion", "preference")
