"""States of a stage, and changes since it was made, as values. Words are made here, and nothing is read out of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

from nbutils.core.files import Json


class State(StrEnum):
    """What a stage's record says of it. `running` without a living process was interrupted."""

    ABSENT = "absent"
    RUNNING = "running"
    PAUSED = "paused"
    FAILED = "failed"
    DONE = "done"


class Kind(Enum):
    """What can change under a finished stage; the value introduces its name in a sentence."""

    CELLS = "the notebook's code cells"
    PARAMETER = "parameter"
    OUTSIDE = "file outside the run"
    CODE = "module"
    UPSTREAM = "upstream file"
    MISSING = "missing file"


@dataclass(frozen=True)
class Change:
    """One difference between what a stage was made from and what is there today."""

    kind: Kind
    name: str = ""
    old: Any = None
    new: Any = None

    def __str__(self) -> str:
        what = f"{self.kind.value} {self.name}".strip()
        valued = self.kind in (Kind.PARAMETER, Kind.OUTSIDE)
        return f"{what} ({self.old!r} → {self.new!r})" if valued else what


def differences(kind: Kind, before: Json, after: Json, prefix: str = "") -> Iterator[Change]:
    """A change for each value that differs, in a mapping or list for each of its own."""
    for name in sorted(set(before) | set(after)):
        old, new = before.get(name), after.get(name)
        if isinstance(old, list) and isinstance(new, list):
            old, new = dict(enumerate(old)), dict(enumerate(new))
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(kind, old, new, f"{prefix}{name}.")
        elif old != new:
            yield Change(kind, f"{prefix}{name}", old, new)


def in_short(changes: Sequence[Change | str]) -> str:
    """The first four changes, and how many more there are."""
    more = f" and {len(changes) - 4} more" if len(changes) > 4 else ""
    return "; ".join(map(str, changes[:4])) + more
