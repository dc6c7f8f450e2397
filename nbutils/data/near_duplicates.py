"""Conversations that repeat most of another one: found by hashes of their windows of words, decided in a fixed order.

A conversation is a near-duplicate where `PERCENT` of its own windows stand in one other that comes before it and is
kept itself, so that of each group one stays. Held-out conversations come before all others: where two sides share
text, the training side gives way, and what is held out never depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nbutils.data.contamination import hashed, rolling
from nbutils.data.fates import KEPT, words_as_spelled

WORDS = 8
"""Words of a window, across messages; a shorter conversation has none and is never a near-duplicate."""
PERCENT = 80
LIMIT = 2**28
"""Windows held in memory, 8 bytes each; where there are more, every second, fourth, … hash is left out."""
LEAST = 8
"""Windows that a conversation needs where not all are looked at. Of `n`, the share found is off by 0.4 / √n (one
standard deviation at 80 %): 0.14 for 8, 0.04 for 100."""
PLACE_BITS = 28
"""Low bits of an entry: the conversation's place in its side, the highest set for training; above them is the hash."""
PLACES = 2**PLACE_BITS
TRAIN = PLACES // 2
PART = 2**22
"""Entries that are looked at together, for temporary arrays to stay small."""


def windows(conversations: Sequence[str]) -> pa.Array:
    """Hashes of each text's windows: a list of uint64 for each; words are what white space parts in form NFC."""
    words = [words_as_spelled(text) for text in conversations]
    lengths = np.array(list(map(len, words)), np.int64)
    counts = (lengths - WORDS + 1).clip(min=0)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    over = np.cumsum(lengths) - lengths - offsets[:-1]  # windows before that go over into the next conversation
    hashes = rolling(hashed(chain.from_iterable(words)), WORDS)[np.arange(offsets[-1]) + np.repeat(over, counts)]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), hashes)


class Found(NamedTuple):
    """A near-duplicate: its side and its number there, its source and row, and for a person what it repeats."""

    side: str
    number: int
    row: tuple[str, int]
    detail: str


class NearDuplicates:
    """The windows of all kept conversations while they come, and who repeats whom when all are there.

    Memory: 8 bytes for each window, 2 GiB at most, for a moment thrice that where most conversations repeat something,
    and some 50 bytes for each conversation.
    """

    def __init__(self) -> None:
        self.entries = np.empty(LIMIT, np.uint64)  # takes memory as it is filled
        self.size = 0
        self.one_in = 1
        self.looked_at = 0
        self.rows: dict[str, list[pa.Table]] = {"eval": [], "train": []}
        self.counts = dict.fromkeys(self.rows, 0)

    def add(self, table: pa.Table) -> None:
        """Takes the kept ones of a batch's rows, duplicates already marked."""
        kept = table.filter(pc.equal(table["fate"], KEPT))
        for side, first in (("eval", 0), ("train", TRAIN)):
            rows = kept.filter(pc.equal(kept["side"], side))
            places = np.arange(rows.num_rows, dtype=np.uint64) + np.uint64(first + self.counts[side])
            places = np.repeat(places, pc.list_value_length(rows["windows"]).to_numpy())
            hashes = rows["windows"].combine_chunks().flatten().to_numpy()
            entries = hashes // PLACES * PLACES + places
            entries.sort()
            self._put(entries[np.diff(entries, prepend=~entries[:1]) != 0])  # each once
            self.rows[side].append(rows.select(["source", "index"]))
            self.counts[side] += rows.num_rows

    def _put(self, entries: np.ndarray) -> None:
        entries = self._sampled(entries)
        while self.size + len(entries) > LIMIT:  # how often follows from how many there are, not from the batches
            self.one_in *= 2
            entries, rest = self._sampled(entries), self._sampled(self.entries[: self.size])
            self.size = len(rest)
            self.entries[: self.size] = rest
        self.entries[self.size : self.size + len(entries)] = entries
        self.size += len(entries)

    def _sampled(self, entries: np.ndarray) -> np.ndarray:
        return entries if self.one_in == 1 else entries[entries // PLACES % self.one_in == 0]

    @cached_property
    def found(self) -> list[Found]:
        """The near-duplicates, when all rows have been added."""
        held_out, count = self.counts["eval"], sum(self.counts.values())
        for part in self._parts():
            part -= part // TRAIN % 2 * (TRAIN - held_out)  # places without a gap between the sides
        self.entries[: self.size].sort()
        own, seen = np.zeros(count, np.int64), np.zeros(count, np.int64)
        for part in self._parts(1):
            own += np.bincount(places_of(part[:PART]), minlength=count)
            seen += np.bincount(places_of(part[1:][np.diff(part // PLACES) == 0]), minlength=count)
        needed = -(-own * PERCENT // 100)
        least = 1 if self.one_in == 1 else LEAST
        self.looked_at = int((own >= least).sum())
        suspects = (own >= least) & (seen >= needed)  # what is seen may yet stand in many others, a bit in each
        if not suspects.any():
            return []
        theirs = np.concatenate([part[suspects[places_of(part)]] for part in self._parts()])
        turned = theirs << (64 - PLACE_BITS)  # place above hash, to have each conversation's together
        theirs >>= PLACE_BITS
        theirs |= turned
        theirs.sort()
        dropped = np.zeros(count, bool)
        repeats: list[tuple[int, int, float]] = []
        for place, end in zip(np.flatnonzero(suspects).tolist(), np.cumsum(own[suspects]), strict=True):
            hashes = theirs[end - own[place] : end] << PLACE_BITS
            if repeated := self._repeated(hashes, place, needed[place], dropped):
                dropped[place] = True
                repeats.append((place, repeated[0], repeated[1] / own[place]))
        return self._described(repeats)

    def _described(self, repeats: list[tuple[int, int, float]]) -> list[Found]:
        held_out, windows = self.counts["eval"], "windows" if self.one_in == 1 else "windows looked at"
        rows = pa.concat_tables([table for tables in self.rows.values() for table in tables])
        here, there = (rows.take([pair[which] for pair in repeats]).to_pylist() for which in (0, 1))
        return [
            Found(
                *(("eval", place) if place < held_out else ("train", place - held_out)),
                (one["source"], one["index"]),
                f"{share:.0%} of its {windows} stand in {other['source']} row {other['index']}",
            )
            for (place, _, share), one, other in zip(repeats, here, there, strict=True)
        ]

    def _parts(self, more: int = 0) -> Iterator[np.ndarray]:
        """Views of the entries, `PART` of each and `more` of the next."""
        return (self.entries[at : min(at + PART + more, self.size)] for at in range(0, self.size, PART))

    def _repeated(self, hashes: np.ndarray, place: int, needed: int, dropped: np.ndarray) -> tuple[int, int] | None:
        """An earlier conversation that is kept and has `needed` of those of `place`, and how many it has.

        First the earliest of each window is tried. Any other has one of each `len(hashes) - needed + 1` windows: those
        of the fewest conversations are looked up (the prefix filter of Chaudhuri et al. 2006, "A Primitive Operator for
        Similarity Joins in Data Cleaning").
        """
        entries = self.entries[: self.size]
        begins, ends = np.searchsorted(entries, hashes), np.searchsorted(entries, hashes + np.uint64(place))
        rare = np.argsort(ends - begins, kind="stable")[: len(hashes) - needed + 1]
        for starts, stops in ((begins, begins + (begins < ends)), (begins[rare], ends[rare])):
            slices = [entries[start:stop] for start, stop in zip(starts, stops, strict=True)]
            others = np.unique(np.concatenate(slices) % PLACES)
            others = others[~dropped[places_of(others)]]
            for some in np.array_split(others, len(others) * len(hashes) // PART + 1):
                keys = hashes[:, None] + some
                shared = np.append((entries[np.searchsorted(entries, keys)] == keys).sum(0), 0)
                if shared.max() >= needed:
                    return int(some[shared.argmax()]), int(shared.max())
        return None


def places_of(entries: np.ndarray) -> np.ndarray:
    """The places of entries' conversations."""
    return (entries % PLACES).astype(np.int64)
