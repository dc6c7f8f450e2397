"""What a stage's folder is worth under today's settings and code, and setting work aside without ever deleting it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nbutils.core.cachekey import PARAMETER, UPSTREAM, changes, key_of, key_parts
from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.core.inputs import FILES
from nbutils.core.notebooks import StageSpec, stages
from nbutils.core.provenance import versions
from nbutils.core.record import CHECKPOINTS, RECORD, matches, stage_record, write_record
from nbutils.core.settings import Settings

LONG_WORK_SECONDS = 600.0
"""Stale work that took longer than this is never replaced without asking."""


@dataclass(frozen=True)
class Verdict:
    """`state`: absent, done, paused, interrupted, stale, or anew (emptied on request).

    `changed` says in words what made it stale.

    `protected`: the work is long, or unfinished with checkpoints, so that replacing it needs a person's word.
    """

    state: str
    parts: dict[str, Any]
    changed: list[str] = field(default_factory=list)
    work_seconds: float = 0.0
    protected: bool = False
    record: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        """The cache key under today's settings and code."""
        return key_of(self.parts)

    @property
    def status(self) -> str:
        """What the stage's record says of itself, whether it still fits or not; `absent` without one."""
        return str(self.record["status"]) if self.record else "absent"

    @property
    def reason(self) -> str:
        """The verdict in a few words for `--explain`."""
        error = (self.record or {}).get("error")
        words = {
            "absent": "never run",
            "anew": "anew, as asked",
            "done": "nothing that it depends on has changed",
            "paused": f"paused{progress_words(self.record)}",
            "interrupted": f"did not finish ({error})" if error else "was interrupted before it finished",
            "stale": f"changed: {in_short(self.changed)}",
        }
        return words[self.state]


def judge(stage: StageSpec, settings: Settings) -> Verdict:
    """The verdict on one stage of the settings' run folder."""
    folder = settings.run_path / stage.name
    record = stage_record(settings.run_path, stage.name)
    parts = key_parts(stage, settings)
    if record is None:
        return Verdict("absent", parts)
    changed = [] if record["key"] == key_of(parts) else changes(record["parts"], parts) or ["the cache key's own form"]
    changed += [f"{shown(folder / name)} is missing" for name in _missing(folder, stage, record)]
    seconds = work_seconds(folder, record)
    state = {"done": "done", "paused": "paused"}.get(record["status"], "interrupted")
    protected = seconds > LONG_WORK_SECONDS or (state != "done" and has_checkpoints(folder))
    return Verdict("stale" if changed else state, parts, changed, seconds, protected, record)


def work_seconds(folder: Path, record: dict[str, Any]) -> float:
    """Seconds of work in a stage's folder, those of a run that ended without a word included (by its newest file)."""
    seconds = float(record.get("work_seconds", record.get("seconds", 0.0)))
    if record["status"] != "running":
        return seconds
    started = datetime.fromisoformat(record["started"]).timestamp()
    newest = max((path.stat().st_mtime for path in folder.rglob("*") if path.is_file()), default=started)
    return seconds + max(0.0, newest - started)


def has_checkpoints(folder: Path) -> bool:
    """Whether a stage's folder holds checkpoints."""
    checkpoints = folder / CHECKPOINTS
    return checkpoints.is_dir() and any(path.is_dir() for path in checkpoints.iterdir())


def ask(stage: StageSpec, settings: Settings, verdict: Verdict) -> UserError:
    """The sentence that stops a run rather than replace long or checkpointed work."""
    folder = shown(settings.run_path / stage.name)
    return UserError(
        f"{folder} holds {duration(verdict.work_seconds)} of work that no longer fits ({in_short(verdict.changed)}): "
        "run again with --accept to keep it, with --force to set it aside and start anew, or choose another run_dir."
    )


def accept(stage: StageSpec, settings: Settings, verdict: Verdict) -> None:
    """Keeps stale work as it is: its record gets today's key. UserError for checkpoints of other settings or data."""
    record = dict(verdict.record or {})
    if differing := not_continued(verdict):
        raise UserError(
            f"The checkpoints in {shown(settings.run_path / stage.name)} belong to other settings or data "
            f"({in_short(differing)}) and cannot be continued: set those back, or use --force to start anew."
        )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record["accepted"] = [*record.get("accepted", []), {"at": now, "changed": verdict.changed}]
    record |= {"key": verdict.key, "parts": verdict.parts, "inputs": verdict.parts["upstream"]}
    record["outputs"] = {
        name: entry
        for name, entry in record["outputs"].items()
        if (settings.run_path / stage.name / name).is_file() or not _read_by_others(stage, name)
    }
    write_record(settings.run_path / stage.name / RECORD, record)


def not_continued(verdict: Verdict) -> list[str]:
    """The changes over which unfinished work cannot be continued, even if a person accepts it; none for finished.

    Files outside the run folder are no such change: what the work took from them lies in the stage's own folder.
    """
    outside = f"{PARAMETER}{FILES}."
    serious = (words for words in verdict.changed if words.startswith((PARAMETER, UPSTREAM)))
    return [words for words in serious if verdict.status != "done" and not words.startswith(outside)]


def set_aside(folder: Path) -> Path:
    """Renames a stage's folder to one with the date behind its name, and says where it is now."""
    date = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    target, number = folder.with_name(f"{folder.name}-{date}"), 2
    while target.exists():
        target, number = folder.with_name(f"{folder.name}-{date}-{number}"), number + 1
    folder.rename(target)
    return target


def clear(folder: Path) -> None:
    """Empties a stage's folder; the record goes first, so that nothing half looks done."""
    if not folder.is_dir():
        return
    (folder / RECORD).unlink(missing_ok=True)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def library_changes(verdict: Verdict) -> str:
    """'torch 2.12 (now 2.13), …' for each library that has changed since the stage's work; '' where none has."""
    before, now = (verdict.record or {}).get("versions", {}), versions()
    return ", ".join(
        f"{name} {before[name]} (now {now[name]})" for name in before if now.get(name) not in (None, before[name])
    )


def in_short(changed: list[str], most: int = 4) -> str:
    """The first few changes, and how many more there are."""
    more = len(changed) - most
    return "; ".join(changed[:most]) + (f" and {more} more" if more > 0 else "")


def duration(seconds: float) -> str:
    """A time span as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def progress_words(record: dict[str, Any] | None) -> str:
    """' at 62 % (step 310)' from a paused stage's facts, as far as it gives them."""
    facts = (record or {}).get("facts", {})
    fraction = f" at {100 * facts['fraction']:.0f} %" if "fraction" in facts else ""
    step = f" (step {facts['step']})" if "step" in facts else ""
    return fraction + step


def _missing(folder: Path, stage: StageSpec, record: dict[str, Any]) -> list[str]:
    """Recorded files that later stages read and that are gone."""
    return [name for name in record["outputs"] if _read_by_others(stage, name) and not (folder / name).is_file()]


def _read_by_others(stage: StageSpec, name: str) -> bool:
    return any(matches(name, later.reads.get(stage.name, ())) for later in stages())
