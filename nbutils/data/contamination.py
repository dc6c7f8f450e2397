"""Whether a conversation shares a run of words with an item of an evaluation task.

The method of GPT-3's appendix C (Brown et al. 2020, "Language Models are Few-Shot Learners"): a shared 13-gram of
lower-case words without punctuation. Most hits deserve a look, so the matched words are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from nbutils.core.files import Json, read_json, replaced, write_json
from nbutils.core.tasks import item_label, item_texts, load_tasks, own_tasks
from nbutils.data.fates import normalised
from nbutils.data.settings import DataSettings

WORD = re.compile(r"\w+")
BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd multiplier of the rolling hash (2^64 divided by the golden ratio)."""


@dataclass(frozen=True)
class Match:
    """What a conversation shares with items: their labels, and the first run of words found, from the first of them."""

    items: list[str]
    words: str

    @property
    def detail(self) -> str:
        """For a person: the first item and the words, then how many more there are."""
        more = len(self.items) - 1
        return f"{self.items[0]}: «{self.words}»" + (f" (and {more:,} more)" if more else "")


@dataclass(frozen=True)
class NgramIndex:
    """Hashes of the items' n-grams, sorted, with the item that each comes from; one of two items is there twice."""

    hashes: np.ndarray  # (N,) uint64
    items: np.ndarray  # (N,) int32, positions in `labels`
    labels: list[str]
    words: int

    def matches(self, conversations: Sequence[Sequence[str]]) -> dict[int, Match]:
        """The conversations (lists of texts) that share a run of words with items: place in the list → the match.

        Texts of one conversation are read as one: an item's question and answer may be in two turns.
        """
        tokens = [words_of(" ".join(texts)) for texts in conversations]
        lengths = np.array([len(row) for row in tokens], np.int64)
        grams = rolling(hashed(chain.from_iterable(tokens)), self.words)
        found: dict[int, Match] = {}
        if not len(self.hashes):
            return found
        first = np.searchsorted(self.hashes, grams)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        for hit in np.flatnonzero(self.hashes[first.clip(max=len(self.hashes) - 1)] == grams):
            row = int(np.searchsorted(starts, hit, side="right")) - 1
            begin = int(hit - starts[row])
            if begin + self.words <= lengths[row]:  # else the run goes over into the next conversation
                match = found.setdefault(row, Match([], " ".join(tokens[row][begin : begin + self.words])))
                stop = np.searchsorted(self.hashes, grams[hit], side="right")
                labels = [self.labels[item] for item in self.items[first[hit] : stop]]
                match.items.extend(label for label in labels if label not in match.items)
        return found


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return WORD.findall(normalised(text).lower())


def hashed(words: Iterable[str]) -> np.ndarray:
    """Hashes of words, each of which depends on the word alone: (W,) uint64."""
    given = list(words)
    once = dict.fromkeys(given)
    hashes = dict(zip(once, pd.util.hash_array(np.array([*once], object), categorize=False).tolist(), strict=True))
    return np.fromiter(map(hashes.__getitem__, given), np.uint64, len(given))


def rolling(words: np.ndarray, n: int) -> np.ndarray:
    """The polynomial hash modulo 2^64 of every run of `n` words: (W,) uint64 → (W - n + 1,)."""
    count = max(0, len(words) - n + 1)
    hashes = np.zeros(count, np.uint64)
    for offset in range(n):
        hashes = hashes * BASE + words[offset : offset + count]
    return hashes


def build_index(items: Iterable[tuple[str, list[str]]], words: int, folder: Path) -> Json:
    """Writes the index of (label, texts) items into `folder`; returns how many items and n-grams it holds.

    Items shorter than `words` words have no n-gram; they are counted, and cannot be found.
    """
    nothing = np.zeros(0, np.uint64)
    grams = {label: [rolling(hashed(words_of(text)), words) for text in texts] for label, texts in items}
    hashes = [np.unique(np.concatenate([nothing, *of_texts])) for of_texts in grams.values()]
    labels, lengths, flat = list(grams), list(map(len, hashes)), np.concatenate([nothing, *hashes])
    order = np.argsort(flat, kind="stable")
    with replaced(folder) as partial:
        partial.mkdir()
        np.save(partial / "hashes.npy", flat[order])
        np.save(partial / "items.npy", np.repeat(np.arange(len(labels), dtype=np.int32), lengths)[order])
        write_json(partial / "index.json", {"words": words, "labels": labels})
    loaded_index.cache_clear()
    return {"items": len(labels), "items_too_short": lengths.count(0), "ngrams": len(np.unique(flat)), "words": words}


@lru_cache(maxsize=2)
def loaded_index(folder: str) -> NgramIndex:
    """The index in a folder, memory-mapped, opened once by each process."""
    arrays = {name: np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in ("hashes", "items")}
    return NgramIndex(**arrays, **read_json(Path(folder) / "index.json"))


def index_tasks(settings: DataSettings, folder: Path) -> Json | None:
    """Builds the index of the items of `contamination_tasks` in `folder`/contamination; None where no task is named."""
    if not settings.contamination_tasks:
        return None
    tasks = load_tasks(settings.contamination_tasks, own_tasks(settings.task_path))
    items = ((item_label(name, number), texts) for name, task in tasks.items() for number, texts in item_texts(task))
    return {"tasks": list(tasks)} | build_index(items, settings.contamination_words, folder / "contamination")
