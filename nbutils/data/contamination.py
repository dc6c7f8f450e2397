"""Whether a conversation shares a run of words with an item of an evaluation task.

The method of GPT-3's appendix C (Brown et al. 2020, "Language Models are Few-Shot Learners"): a shared 13-gram of
lower-case words without punctuation. Most hits deserve a look, so the matched words are kept.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from nbutils.core.files import read_json, replaced, write_json
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

    def matches(self, conversations: Sequence[Sequence[str]]) -> list[Match | None]:
        """For each conversation (its texts) all items that share a run of words with it; None where there are none.

        Texts of one conversation are read as one: an item's question and answer may be in two turns.
        """
        tokens = [words_of(" ".join(texts)) for texts in conversations]
        lengths = np.array([len(row) for row in tokens], np.int64)
        flat = np.fromiter(map(hash_of_word, chain.from_iterable(tokens)), np.uint64, lengths.sum())
        words = [""] * len(conversations)
        items: list[dict[int, None]] = [{} for _ in conversations]
        grams = rolling(flat, self.words)
        if not len(grams) or not len(self.hashes):
            return [None] * len(conversations)
        first = np.searchsorted(self.hashes, grams)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        for hit in np.flatnonzero(self.hashes[first.clip(max=len(self.hashes) - 1)] == grams):
            row = int(np.searchsorted(starts, hit, side="right")) - 1
            begin = int(hit - starts[row])
            if begin + self.words <= lengths[row]:  # else the run goes over into the next conversation
                words[row] = words[row] or " ".join(tokens[row][begin : begin + self.words])
                stop = np.searchsorted(self.hashes, grams[hit], side="right")
                items[row] |= dict.fromkeys(self.items[first[hit] : stop].tolist())
        return [
            Match([self.labels[item] for item in own], run) if own else None
            for own, run in zip(items, words, strict=True)
        ]


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return WORD.findall(normalised(text).lower())


@lru_cache(maxsize=200_000)
def hash_of_word(word: str) -> int:
    """64 bits that depend on the word alone."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def rolling(words: np.ndarray, n: int) -> np.ndarray:
    """The polynomial hash modulo 2^64 of every run of `n` words: (W,) uint64 → (W - n + 1,)."""
    count = len(words) - n + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    hashes = np.zeros(count, np.uint64)
    for offset in range(n):
        hashes = hashes * BASE + words[offset : offset + count]
    return hashes


def build_index(items: Iterable[tuple[str, list[str]]], words: int, folder: Path) -> dict[str, Any]:
    """Writes the index of (label, texts) items into `folder`; returns how many items and n-grams it holds.

    Items shorter than `words` words have no n-gram; they are counted, and cannot be found.
    """
    hashes: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    labels: list[str] = []
    short = 0
    for label, texts in items:
        grams = [
            rolling(np.fromiter(map(hash_of_word, row), np.uint64, len(row)), words) for row in map(words_of, texts)
        ]
        own = np.unique(np.concatenate(grams)) if grams else np.zeros(0, np.uint64)
        short += not len(own)
        hashes.append(own)
        numbers.append(np.full(len(own), len(labels), np.int32))
        labels.append(label)
    flat = np.concatenate([np.zeros(0, np.uint64), *hashes])
    order = np.argsort(flat, kind="stable")
    with replaced(folder) as partial:
        partial.mkdir()
        np.save(partial / "hashes.npy", flat[order])
        np.save(partial / "items.npy", np.concatenate([np.zeros(0, np.int32), *numbers])[order])
        write_json(partial / "index.json", {"words": words, "labels": labels})
    return {"items": len(labels), "items_too_short": short, "ngrams": len(np.unique(flat)), "words": words}


def loaded_index(folder: str) -> NgramIndex:
    """The index in a folder, memory-mapped, opened once by each process (again when it changes)."""
    return _index(folder, (Path(folder) / "index.json").stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _index(folder: str, _changed: int) -> NgramIndex:
    path = Path(folder)
    facts = read_json(path / "index.json")
    hashes, items = (np.load(path / f"{name}.npy", mmap_mode="r") for name in ("hashes", "items"))
    return NgramIndex(hashes, items, facts["labels"], facts["words"])


def index_tasks(settings: DataSettings, folder: Path) -> dict[str, Any] | None:
    """Builds the index of the items of `contamination_tasks` in `folder`/contamination; None where no task is named."""
    if not settings.contamination_tasks:
        return None
    tasks = load_tasks(settings.contamination_tasks, own_tasks(settings.task_path))
    items = ((item_label(name, number), texts) for name, task in tasks.items() for number, texts in item_texts(task))
    return {"tasks": list(tasks)} | build_index(items, settings.contamination_words, folder / "contamination")
