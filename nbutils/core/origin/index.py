"""An index over the words of a run's training rows: which passages of a text stand there, word for word.

A *word* goes from a letter or digit to a letter or digit, with nothing between but more of these, marks on letters,
apostrophes, hyphens and underscores ("e-mail", "don't", "snake_case", but not "_emphasis_"). Every character of the
scripts that put no spaces between words is one, too. Two texts agree where their words do and all other visible
characters between them, after the tokenizer's own normalisation of characters. Case matters; how much white space there
is, and which pieces the tokenizer cuts a word into, does not.

A *span* of a text is a run of at least `MIN_WORDS` words that stands in a message of the training rows, and is part of
no longer one. It ends where a message does: what is between messages, control tokens and all, is not indexed.

The messages lie in a row as numbers: what stands before a word, the word, what stands before the next, …, and a border.
Beside them lie the places of all windows of six words, sorted by their hash. (A suffix array by pydivsufsort, which
sorts bytes alone, took 3.6 times as long to make.) All is in one file: whoever has it open can read it to the end, also
where another process removes it.
"""

from __future__ import annotations

import re
import shutil
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view
from tokenizers import Tokenizer

from nbutils.core.errors import UserError
from nbutils.core.files import hash_of, resolve, sha256_of_json, shown
from nbutils.core.run.layout import Run
from nbutils.core.run.record import current_hash
from nbutils.core.run.state import State
from nbutils.core.stages import maker

MIN_WORDS = 6
"""Words of the shortest span: shorter ones are everybody's."""
CACHE = "runs/.cache/origin"
KEPT = 8
"""Indexes that stay there when one more is made: those that were used last."""
SCHEMA = 2
SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese characters."""
SIGNS = (
    rf"\s!-&(-,./:-@\[-\^`{{-\u00bf\u2010-\u2018\u201a-\u2bff\u2e00-\u2e7f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20"
    rf"\U0001f000-\U0001faff{SPACELESS}"
)
"""What ends a word besides white space: punctuation, signs, pictures, and the characters above."""
WORD = re.compile(rf"([{SPACELESS}]|[^\W_{SPACELESS}](?:[^{SIGNS}]*[^{SIGNS}'’_-])?)")

BORDER, UNKNOWN = 0, 2**32 - 1
"""What stands behind each message in place of a word; and what no training row has."""
WINDOW = 2 * MIN_WORDS - 1
"""Numbers of six words, with what stands between them."""
PIECE = 2**20
"""Numbers of which windows are made at once."""
FACTORS = np.random.default_rng(0).integers(1 << 63, 1 << 64, WINDOW, np.uint64) | np.uint64(1)
LOW = np.uint64(2**32 - 1)


@dataclass(frozen=True, eq=False)
class Span:
    """A passage of a text that stands in the training rows: its characters `start` to `end`, how many `words`, its
    `count` there and in how many `conversations`. `places` (2, conversations): these rows, in order, and where in the
    index it first stands in each.
    """

    text: str
    start: int
    end: int
    words: int
    count: int
    conversations: int
    places: np.ndarray


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
        text, first, last = self.text, max(0, self.start - around), self.end + around
        before, after = text[first : self.start], text[self.end : last]
        return "…" * (first > 0) + before, text[self.start : self.end], after + "…" * (last < len(text))


def words_in(text: str) -> int:
    """How many words a text has."""
    return len(WORD.findall(text))


class Index:
    """The index of a run's training rows, in a file of the cache. Memory-mapped, and safe to ask from any thread."""

    def __init__(self, run: Run) -> None:
        """The index is kept in `runs/.cache/` under the hash of the rows, and made where there is none yet or a damaged
        one, in half a second a million tokens. UserError for a run without rows, or if it cannot be kept."""
        from datasets import load_from_disk

        stage = maker("rows")
        record = run.record(stage.name)
        outputs = record["outputs"] if record and record["status"] == State.DONE else {}
        hashes = {
            name: (entry["sha256"], current_hash(run.rows, name, entry))
            for name, entry in outputs.items()
            if name.startswith(("train/", "tokenizer/tokenizer.json"))
        }
        if not hashes or any(made != now for made, now in hashes.values()):
            raise UserError(
                f"{shown(run.rows / 'train')} holds no training rows as they were made: give the folder of a run in "
                f"which notebooks/{stage.file} has finished, or run that first."
            )
        self.conversations = load_from_disk(str(run.rows / "train"))
        normalizer = Tokenizer.from_file(str(run.rows / "tokenizer" / "tokenizer.json")).normalizer
        self.read: Callable[[str], str] = (
            (lambda text: normalizer.normalize_str(text).replace("▁", " ")) if normalizer else str
        )
        """A text as the run's tokenizer normalises its characters, which is how a model writes them."""
        made = resolve(CACHE) / sha256_of_json({"schema": SCHEMA, **hashes})[:24]
        for file in made.parent.glob(f"{made.name}-*"):  # behind it the hash of what is in the file
            with suppress(OSError):  # another process has just removed it
                if file.name.endswith(hash_of(file)[:24]):
                    return self._open(file)
        try:
            self._open(self._build(made))
        except OSError as error:
            raise UserError(
                f"The index of the training rows cannot be written to {shown(made.parent)} "
                f"({error.strerror or error}): make room there, or make it writable."
            ) from error

    def _open(self, file: Path) -> None:
        with pa.memory_map(str(file)) as mapped:
            self._windows, self._rows, self._text, names = (pa.ipc.read_tensor(mapped).to_numpy() for _ in range(4))
        self._ids = {name: number for number, name in enumerate(["\n", *names.tobytes().decode().split("\n")])}

    def trace(self, text: str) -> list[Span]:
        """The spans of a text, from left to right; they may overlap. `start` and `end` count the characters of
        `read(text)`, which is the text itself where the tokenizer changes no characters."""
        text = self.read(text)
        words, ids = [*WORD.finditer(text)], self._numbers(text)
        spans: list[Span] = []
        end = 0
        for window in range(1, len(ids) - WINDOW - 1, 2):
            if window + WINDOW <= end or not len(at := self._standing(ids[window : window + WINDOW])):
                continue  # part of the span before, or in no message
            start, end = window, window + WINDOW
            while start > 1 and len(more := self._having(ids[start - 2 : start], at - 2)):
                at, start = more, start - 2
            while end < len(ids) - 2 and len(more := self._having(ids[end : end + 2], at + end - start)):
                at, end = more - end + start, end + 2
            first, last = words[start // 2].start(), words[end // 2 - 1].end()
            rows, one = np.unique(np.searchsorted(self._rows, at, "right") - 1, return_index=True)
            places = np.stack([rows, at[one]])
            spans.append(Span(text[first:last], first, last, (end - start + 1) // 2, len(at), len(rows), places))
        return spans

    def places(self, span: Span, most: int) -> Iterator[Place]:
        """Where a span stands: its first place in each conversation, of the first `most` conversations."""
        for row, at in zip(*span.places[:, :most].tolist(), strict=True):
            conversation, left = self.conversations[row], at - int(self._rows[row])
            for number, message in enumerate(conversation["messages"], 1):
                text = self.read(message["content"])
                words = [word.span() for word in WORD.finditer(text)]
                if 0 <= left < 2 * len(words):
                    found = words[left // 2 :][: span.words]
                    where = conversation["source"], conversation["index"], number, message["role"]
                    yield Place(*where, text, found[0][0], found[-1][1])
                left -= 2 * len(words) + 2

    def _build(self, made: Path) -> Path:
        """Writes the index, whole or not at all, into a file whose name begins as `made`. UserError for too many words.

        Those that were not used for longest go then.
        """
        made.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=made.parent) as folder:
            ids = defaultdict[str, int](count(1).__next__, {"\n": BORDER})
            numbers, starts, windows = array("I"), [], []
            for batch in self.conversations.select_columns(["messages"]).with_format("arrow").iter(1000):
                for messages in batch["messages"].to_pylist():
                    starts.append(len(numbers))
                    for message in messages:
                        numbers.extend(map(ids.__getitem__, _named(self.read(message["content"]))))
            numbers.extend([BORDER] * WINDOW)
            if len(numbers) > LOW:
                raise UserError(
                    "The training rows have more than two billion words, which is more than can be indexed."
                )
            text = np.frombuffer(numbers, np.uint32)
            for start in range(1, len(text) - WINDOW, PIECE):
                found = sliding_window_view(text[start : start + PIECE + WINDOW - 1], WINDOW)[::2]
                at = np.flatnonzero(found.all(axis=1))  # inside a message
                windows.append(_hashes(found[at]) | (start + 2 * at).astype(np.uint64))
            keys = np.concatenate(windows)
            keys.sort()
            names = np.frombuffer("\n".join([*ids][1:]).encode(), np.uint8)
            partial = Path(folder, "index")
            with pa.OSFile(str(partial), "wb") as file:
                for values in (keys, np.array(starts), text, names):  # the widest first: all are aligned
                    pa.ipc.write_tensor(pa.Tensor.from_numpy(values), file)
            made = partial.replace(made.with_name(f"{made.name}-{hash_of(partial)[:24]}"))
        with suppress(OSError):  # another process may be removing them
            for old in sorted(made.parent.iterdir(), key=lambda file: file.stat().st_atime_ns)[:-KEPT]:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        return made

    def is_message(self, text: str) -> bool:
        """Whether a text of six words or more is the whole of a message, with all its signs."""
        ids = self._numbers(self.read(text))
        return len(self._having(ids[[-1, 0]], self._standing(ids[1:]) - 2)) > 0

    def _numbers(self, text: str) -> np.ndarray:
        return np.array([self._ids.get(name, UNKNOWN) for name in _named(text)], np.uint32)

    def _standing(self, ids: np.ndarray) -> np.ndarray:
        """Where these stand in a row, from a word on, with six or more."""
        wanted = _hashes(ids[:WINDOW])
        low, high = np.searchsorted(self._windows, [wanted, wanted | LOW])
        return self._having(ids, (self._windows[low:high] & LOW).astype(np.int64))  # others may have the same hash

    def _having(self, ids: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Those of the places at which these stand in a row."""
        for ahead, number in enumerate(ids):
            at = at[self._text[at + ahead] == number]
        return at


def _named(text: str) -> list[str]:
    """What is numbered: what stands before a word, the word, what stands before the next, …, and a border."""
    parts = WORD.split(text)
    parts[::2] = ["".join(signs.split()) for signs in parts[::2]]
    return [*parts, "\n"]


def _hashes(windows: np.ndarray) -> np.ndarray:
    """The hash of each window (N, 11) → (N,), in the upper half of a 64-bit number; the place is in the lower."""
    return windows @ FACTORS & ~LOW
