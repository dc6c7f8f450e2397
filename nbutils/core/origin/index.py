"""An index over the words of a run's training rows: which passages of a text stand there, word for word.

A *word* goes from a letter or digit to a letter or digit, with nothing between but more of these, marks on letters,
apostrophes and hyphens ("e-mail", "don't"). Every other visible character stands alone, and so does every character of
the scripts that put no spaces between words, each of which counts as a word. Two texts agree where these agree, after
the tokenizer's own normalisation of characters. Case matters; how much white space there is, and which pieces the
tokenizer cuts a word into, does not.

A *span* of a text is a run of them that stands in a message of the training rows, begins and ends with a word, has at
least `MIN_WORDS` words, and is part of no longer one. It ends where a message does: what is between messages, control
tokens and all, is not indexed.

Beside the words, as numbers, lie the places of all windows of six, sorted by their hash. (A suffix array by
pydivsufsort, which sorts bytes alone, took 3.6 times as long to make.)
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from tokenizers import Tokenizer

from nbutils.core.errors import UserError
from nbutils.core.files import hash_of, read_json, replaced, resolve, sha256_of_json, shown, write_json
from nbutils.core.run.layout import Run
from nbutils.core.run.record import current_hash
from nbutils.core.run.state import State
from nbutils.core.stages import maker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.unsignedinteger[Any]]
    Places = NDArray[np.int64]

MIN_WORDS = 6
"""Words of the shortest span: shorter ones are everybody's."""
CACHE = "runs/.cache/origin"
SCHEMA = 1
SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese characters."""
SIGNS = (
    rf"\s!-&(-,./:-@\[-\^`{{-\u00bf\u2010-\u2018\u201a-\u2bff\u2e00-\u2e7f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20"
    rf"\U0001f000-\U0001faff{SPACELESS}"
)
"""What ends a word besides white space: punctuation, signs, pictures, and the characters above."""
UNIT = re.compile(rf"[{SPACELESS}]|[^\W{SPACELESS}](?:[^{SIGNS}]*[^{SIGNS}'’-])?|\S")
"""A word, or a character that stands alone."""

MESSAGE, ROW, UNKNOWN = 0, 1, 2**32 - 1
"""What stands behind each message, and behind each row's last; and a word of a text that no training row has."""
FACTORS = np.random.default_rng(0).integers(1 << 63, 1 << 64, MIN_WORDS, np.uint64) | np.uint64(1)
LOW = np.uint64(2**32 - 1)


@dataclass(frozen=True, eq=False)
class Span:
    """A passage of a text that stands in the training rows: its characters `start` to `end`, and how many `words`.

    `at`: where it begins among the index's words, once for each time that it stands there; `rows`: the training rows of
    these places, both in row order.
    """

    text: str
    start: int
    end: int
    words: int
    at: Places
    rows: Places

    @property
    def count(self) -> int:
        """How often it stands in the training rows."""
        return len(self.at)

    @property
    def conversations(self) -> int:
        """How many training rows it stands in."""
        return len(np.unique(self.rows))


@dataclass(frozen=True)
class Place:
    """A message that holds a span, from its character `start` to `end`; which message of the conversation it is, from 1
    on, and whose; and the conversation's source and its row there, as the ledger numbers it."""

    source: str
    row: int
    message: int
    role: str
    text: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """Which message it is, in words."""
        return f"{self.source} row {self.row}, message {self.message} ({self.role})"

    def passage(self, around: int) -> tuple[str, str, str]:
        """The span with up to so many characters before and behind it, as three texts."""
        before, after = self.text[: self.start], self.text[self.end :]
        cut = "…" * (len(before) > around), "…" * (len(after) > around)
        return cut[0] + before[-around:], self.text[self.start : self.end], after[:around] + cut[1]


def words_in(text: str) -> int:
    """How many words a text has."""
    return sum(map(_is_word, UNIT.findall(text)))


class Index:
    """The index of a run's training rows. Memory-mapped, and safe to ask from any thread."""

    def __init__(self, folder: Path, run: Run) -> None:
        from datasets import load_from_disk

        self.conversations = load_from_disk(str(run.rows / "train"))
        self.read = _reader(run)
        words = (folder / "words.txt").read_bytes().decode().split("\n")
        self._ids = {word: number for number, word in enumerate(words, ROW + 1)}
        # As plain arrays: numpy's own class for mapped ones takes three times as long at each step.
        self._text, self._windows = (
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ("text", "windows")
        )
        self._rows = np.concatenate([[-1], np.flatnonzero(self._text == ROW)])

    @classmethod
    def open(cls, run: Run) -> Index:
        """The index of a run, kept in `runs/.cache/` under the hash of the rows; made where there is none yet or a
        damaged one, in a quarter second a million tokens. UserError for a run without rows, or if it cannot be kept."""
        stage = maker("rows")
        record = run.record(stage.name) or {}
        files = {
            name: entry
            for name, entry in record.get("outputs", {}).items()
            if name.startswith("train/") or name == "tokenizer/tokenizer.json"
        }
        hashes = {name: current_hash(run.rows, name, entry) for name, entry in files.items()}
        whole = hashes == {name: entry["sha256"] for name, entry in files.items()}
        if not (hashes and whole and record["status"] == State.DONE):
            raise UserError(
                f"{shown(run.rows / 'train')} holds no training rows as they were made: give the folder of a run in "
                f"which notebooks/{stage.file} has finished, or run that first."
            )
        folder = resolve(CACHE) / sha256_of_json({"schema": SCHEMA, **hashes})[:24]
        if not _is_whole(folder):
            try:
                _build(run, folder)
            except OSError as error:
                raise UserError(
                    f"The index of the training rows cannot be written to {shown(folder)} ({error.strerror or error}): "
                    "make room there, or make it writable."
                ) from error
        return cls(folder, run)

    def trace(self, text: str) -> list[Span]:
        """The spans of a text, from left to right; they may overlap. `start` and `end` count the characters of
        `read(text)`, which is the text itself where the tokenizer changes no characters."""
        text = self.read(text)
        units = [*UNIT.finditer(text)]
        ids = self._numbers(unit[0] for unit in units)
        words = np.flatnonzero([_is_word(unit[0]) for unit in units])
        found: list[Places] = []
        for first, behind in self._longest(ids):
            inside = words[(first <= words) & (words < behind)]  # without what stands alone at both ends
            if len(inside) >= MIN_WORDS and not (found and inside[-1] <= found[-1][-1]):
                if found and inside[0] == found[-1][0]:
                    found.pop()
                found.append(inside)
        spans = []
        for inside in found:
            start, end = units[inside[0]].start(), units[inside[-1]].end()
            at = self._standing(ids[inside[0] : inside[-1] + 1])
            spans.append(Span(text[start:end], start, end, len(inside), at, np.searchsorted(self._rows, at) - 1))
        return spans

    def places(self, span: Span, most: int) -> Iterator[Place]:
        """Where a span stands: its first place in each conversation, of the first `most` conversations."""
        units = len(UNIT.findall(span.text))
        rows, first = np.unique(span.rows, return_index=True)
        for row, at in zip(rows[:most].tolist(), span.at[first[:most]].tolist(), strict=True):
            begin = self._rows[row] + 1
            ends = begin + np.flatnonzero(self._text[begin:at] == MESSAGE)  # of the messages before
            conversation = self.conversations[row]
            said = conversation["messages"][len(ends)]
            text = self.read(said["content"])
            found = [*UNIT.finditer(text)][at - max([begin, *(ends + 1)]) :][:units]
            start, end = found[0].start(), found[-1].end()
            yield Place(conversation["source"], conversation["index"], len(ends) + 1, said["role"], text, start, end)

    def is_message(self, text: str) -> bool:
        """Whether a text of six words or more is the whole of a message, with all its signs."""
        ids = self._numbers(UNIT.findall(self.read(text)))
        at = self._standing(ids)
        return bool(((self._text[at - 1] <= ROW) & (self._text[at + len(ids)] <= ROW)).any())

    def _numbers(self, units: Iterable[str]) -> Numbers:
        return np.fromiter((self._ids.get(unit, UNKNOWN) for unit in units), np.uint32)

    def _longest(self, ids: Numbers) -> Iterator[tuple[int, int]]:
        """Each run of a text's words and single characters, six or more, that stands in a message and can be made
        longer at neither end: where in the text it begins, and what is the first behind it."""
        hashes = _hashes(ids) if len(ids) >= MIN_WORDS else np.empty(0, np.uint64)
        known = np.searchsorted(self._windows, hashes) < np.searchsorted(self._windows, hashes | LOW)
        window = 0
        while window < len(known):
            start, end = window, window + MIN_WORDS
            if not known[window] or not len(at := self._standing(ids[start:end])):
                window += 1
                continue
            # A border is no word, so that no step leaves a message. What is left of `window` was part of an earlier
            # run, or is in no message.
            while start and len(more := at[self._text[at - 1] == ids[start - 1]]):
                at, start = more - 1, start - 1
            while end < len(ids) and len(more := at[self._text[at + end - start] == ids[end]]):
                at, end = more, end + 1
            yield start, end
            window = end - MIN_WORDS + 1  # the next run holds what this one lacks

    def _standing(self, ids: Numbers) -> Places:
        """Where these words, six or more, stand in a row."""
        (wanted,) = _hashes(ids[:MIN_WORDS])
        low, high = np.searchsorted(self._windows, [wanted, wanted | LOW])
        at = (self._windows[low:high] & LOW).astype(np.int64)
        for ahead, word in enumerate(ids):
            at = at[self._text[at + ahead] == word]  # other words may have the same hash
        return at


def _is_word(unit: str) -> bool:
    return unit[0].isalnum() or unit[0] == "_"


def _reader(run: Run) -> Callable[[str], str]:
    """A text as the run's tokenizer normalises its characters, which is how a model writes them."""
    normalizer = Tokenizer.from_file(str(run.rows / "tokenizer" / "tokenizer.json")).normalizer
    return (lambda text: normalizer.normalize_str(text).replace("▁", " ")) if normalizer else str


def _is_whole(folder: Path) -> bool:
    """Whether all files of an index are as they were written."""
    try:
        return all(hash_of(folder / name) == found for name, found in read_json(folder / "manifest.json").items())
    except (OSError, ValueError, AttributeError):
        return False


def _build(run: Run, folder: Path) -> None:
    """Writes the index of a run into a folder: whole, or not at all."""
    from datasets import load_from_disk

    read, ids = _reader(run), defaultdict[str, int](count(ROW + 1).__next__)
    ids |= {"\n": MESSAGE, "\n\n": ROW}  # no words
    text, windows, length = [], [], 0
    for rows in load_from_disk(str(run.rows / "train")).select_columns(["messages"]).with_format("arrow").iter(1000):
        units: list[str] = []
        for messages in rows["messages"].to_pylist():
            for message in messages:
                units += UNIT.findall(read(message["content"]))
                units.append("\n")
            units[-1] = "\n\n"
        part = np.fromiter(map(ids.__getitem__, units), np.uint32, len(units))
        text.append(part)
        windows.append(_windows(part, length))
        length += len(part)
    keys = np.concatenate(windows)
    keys.sort()
    with replaced(folder) as partial:
        partial.mkdir(parents=True)
        np.save(partial / "windows.npy", keys)
        np.save(partial / "text.npy", np.concatenate(text))
        (partial / "words.txt").write_bytes("\n".join([*ids][2:]).encode())
        write_json(partial / "manifest.json", {file.name: hash_of(file) for file in sorted(partial.iterdir())})


def _windows(part: Numbers, start: int) -> Numbers:
    """All windows inside a message, of rows that begin at the place `start`: the hash in the upper half of each number,
    the place in the lower. UserError for more places than fit there."""
    if start + len(part) > LOW:
        raise UserError("The training rows have more than four billion words, which is more than can be indexed.")
    if len(part) < MIN_WORDS:
        return np.empty(0, np.uint64)
    at = np.flatnonzero(sliding_window_view(part, MIN_WORDS).min(axis=1) > ROW)
    return _hashes(part)[at] | (at + start).astype(np.uint64)


def _hashes(text: Numbers) -> Numbers:
    """The hash of each window of six words (N words → N - 5), in the upper half of a 64-bit number."""
    return sliding_window_view(text, MIN_WORDS) @ FACTORS & ~LOW
