"""Conversations that repeat most of another one: found by hashes of their windows of words, decided in a fixed order.

A conversation is a near-duplicate where `PERCENT` of its own windows stand in one other that comes before it and is
kept itself, so that of each group one stays. Held-out conversations come before all others: where two sides share
text, the training side gives way, and what is held out never depends on it. So it does where a held-out conversation
of `LEAST` windows or more stands in a longer one: `PERCENT` of the windows of either are enough there. (One of fewer
may be nothing but a question that many begin with.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nbutils.core.files import Json
from nbutils.data.contamination import hashed, rolling
from nbutils.data.fates import KEPT, words_as_spelled

WORDS = 8
"""Words of a window, across messages; a shorter conversation has none and is never a near-duplicate."""
PERCENT = 80
LIMIT = 2**27
"""Windows held in memory; where there are more, every second, fourth, … hash is left out."""
LEAST = 8
"""Windows that a conversation needs to be found in a longer one, and to be found at all where not all are looked at. Of
`n`, the share found is off by 0.4 / √n (one standard deviation at 80 %): 0.14 for 8, 0.04 for 100."""
PLACES, HASHES = 2**27, 2**36
"""How many conversations and hashes are told apart: one of each makes a positive 64-bit number."""


def windows(conversations: Sequence[str]) -> pa.Array:
    """Hashes of each text's windows: a list of uint64 for each; words are what white space parts in form NFC."""
    words = [words_as_spelled(text) for text in conversations]
    owners = np.repeat(np.arange(len(words)), [*map(len, words)])
    first, last = owners[: 1 - WORDS], owners[WORDS - 1 :]
    hashes = rolling(hashed(chain.from_iterable(words)), WORDS)[first == last]
    counts = np.bincount(first[first == last], minlength=len(words))
    return pa.ListArray.from_arrays(pa.array([0, *np.cumsum(counts)], pa.int32()), hashes)


class NearDuplicates:
    """The windows of all kept conversations while they come, and who repeats whom when all are there.

    Memory: 8 bytes for each window, 1 GiB at most, for a moment at the end nearly five times that, and then some 150
    bytes for each conversation.
    """

    def __init__(self) -> None:
        self.one_in = 1
        self.looked_at = 0
        self.rows = pa.schema({"source": pa.string(), "index": pa.int64(), "side": pa.string()}).empty_table()
        self.entries = [np.empty(0, np.int64)]
        """Windows, each once in a conversation: the conversation's number above the hash."""

    def add(self, table: pa.Table) -> None:
        """Takes the kept ones of a batch's rows, duplicates already marked."""
        kept = table.filter(pc.equal(table["fate"], KEPT))
        counts = pc.list_value_length(kept["windows"]).to_numpy()
        numbers = np.repeat(self.rows.num_rows + np.arange(kept.num_rows), counts)
        hashes = kept["windows"].combine_chunks().flatten().to_numpy() % HASHES
        self.entries.append(self._sampled(np.unique(numbers * HASHES + hashes.astype(np.int64))))
        self.rows = pa.concat_tables([self.rows, kept.select(self.rows.column_names)])
        while sum(map(len, self.entries)) > LIMIT:  # follows from how many there are, not from the batches
            self.one_in *= 2
            self.entries = [*map(self._sampled, self.entries)]

    def _sampled(self, entries: np.ndarray) -> np.ndarray:
        return entries[entries % self.one_in == 0]

    @cached_property
    def found(self) -> list[Json]:
        """The near-duplicates, when all rows have been added: of each its `source` and `index` there, its `side` and
        `number` there, and for a person in `detail` what it repeats."""
        order = pc.sort_indices(self.rows["side"])  # eval, train; each in row order
        rows, count = self.rows.take(order), self.rows.num_rows
        held_out = int(np.count_nonzero(pc.equal(rows["side"], "eval")))
        by_place = np.concatenate(self.entries)
        self.entries.clear()
        by_place = np.sort(np.argsort(order)[by_place // HASHES] * HASHES + by_place % HASHES)
        own = np.bincount(by_place // HASHES, minlength=count)
        ends, needed = np.cumsum(own), -(-own * PERCENT // 100)
        by_hash = np.sort(by_place % HASHES * PLACES + by_place // HASHES)
        same = np.concatenate([[False], (by_hash[1:] ^ by_hash[:-1]) < PLACES, [False]])[: len(by_hash) + 1]
        shared = np.bincount(by_hash[same[1:] | same[:-1]] & (PLACES - 1), minlength=count)  # each with any other
        least, windows = (1, "windows") if self.one_in == 1 else (LEAST, "windows looked at")
        self.looked_at = int((own >= least).sum())
        found, dropped = list[Json](), np.zeros(count, bool)

        def hashes_of(place: int) -> np.ndarray:
            return by_place[ends[place] - own[place] : ends[place]] % HASHES

        def holders(place: int, low: int, high: int) -> Iterator[tuple[int, float]]:
            """Those of these conversations that are kept and hold enough windows of `place`, and which share they hold.

            Each has one of any `own - needed + 1` windows: those of the fewest conversations are looked up (the prefix
            filter of Chaudhuri et al. 2006, "A Primitive Operator for Similarity Joins in Data Cleaning").
            """
            hashes = hashes_of(place)
            begins, stops = (np.searchsorted(by_hash, hashes * PLACES + bound) for bound in (low, high))
            rare = np.argsort(stops - begins, kind="stable")[: len(hashes) - needed[place] + 1]
            for most in (1, count):  # the earliest of each window is often enough
                parts = [by_hash[begins[one] : stops[one]][:most] for one in rare]
                others = np.unique(np.concatenate(parts) % PLACES)
                for other in others[~dropped[others]].tolist():
                    share = np.isin(hashes, hashes_of(other), assume_unique=True).mean()
                    if share >= PERCENT / 100:
                        yield other, share

        def drop(place: int, words: str, other: int) -> None:
            dropped[place] = True
            one, there = (rows.slice(at, 1).to_pylist()[0] for at in (place, other))
            detail = f"{words} {there['source']} row {there['index']}"
            found.append(one | {"number": place - held_out * (one["side"] == "train"), "detail": detail})

        for place in np.flatnonzero((own >= least) & (shared >= needed)).tolist():
            if dropped[place]:
                continue
            if repeated := next(holders(place, 0, place), None):
                drop(place, f"{repeated[1]:.0%} of its {windows} stand in", repeated[0])
            elif place < held_out and own[place] >= LEAST:
                for longer, share in holders(place, held_out, count):
                    drop(longer, f"it holds {share:.0%} of the {windows} of", place)
        return found
