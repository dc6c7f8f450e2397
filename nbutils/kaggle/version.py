"""How a version of a notebook on Kaggle ended: what its session notes, and what its output says of it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from nbutils.core.errors import UserError
from nbutils.core.files import sha256_of_file, sha256_of_json
from nbutils.core.run.layout import Run
from nbutils.core.run.record import SCHEMA, read_record, write_record
from nbutils.core.run.state import State
from nbutils.core.stages import stages
from nbutils.kaggle.carry_over import runs_below
from nbutils.kaggle.environment import WHOLE

if TYPE_CHECKING:
    from nbutils.kaggle.account import Account

NOTE = "session.json"
"""In the run folder: how the newest session of a bundle ended, for whoever waits for its output."""
RECORDS = r"(^|/)(stage|run|session)\.json$"
"""What is downloaded of an output to look at."""


def note_end(run: Path, stage: str, status: State, error: str = "") -> None:
    """Notes how a session ended, and when; `running` is one that finished nothing. An earlier note is replaced."""
    record = {"schema": SCHEMA, "stage": stage, "status": status, "time": datetime.now(UTC).isoformat()}
    write_record(run / NOTE, record | ({"error": error} if error else {}))


@dataclass(frozen=True)
class Ended:
    """How a version ended. `running`: it completed, but its output holds no finished stage; `words` say why.

    `mark` tells one session's output from another's.
    """

    state: State
    words: str = ""
    mark: str = ""


def how_it_ended(account: Account, address: str, stage: str) -> Ended:
    """How the newest version of a stage's notebook ended, which has to be complete."""
    names = [each.name for each in stages()] if stage == WHOLE else [stage]
    with tempfile.TemporaryDirectory() as folder:
        account.output(address, Path(folder), RECORDS)
        found = [_of_run(run, names) for run in runs_below(Path(folder))]
        mark = sha256_of_json({str(p.relative_to(folder)): sha256_of_file(p) for p in Path(folder).rglob("*.json")})
    order = [State.FAILED, State.PAUSED, State.DONE, State.RUNNING]
    nothing = Ended(State.RUNNING, f"completed, but its output holds no finished {names[-1]} stage")
    return replace(min(found, key=lambda ended: order.index(ended.state), default=nothing), mark=mark)


def _of_run(run: Path, names: list[str]) -> Ended:
    try:
        note = read_record(run / NOTE) or {}
        records = {name: Run(run).record(name) or {"status": State.ABSENT} for name in names}
    except UserError as error:
        return Ended(State.RUNNING, f"completed, but its output cannot be read ({error})")
    if note.get("status") == State.FAILED:
        return Ended(State.FAILED, f"has published a failed {note['stage']} ({note.get('error', 'see its log')})")
    for name, record in records.items():
        if record["status"] == State.FAILED:
            return Ended(State.FAILED, f"has published a failed {name} ({record.get('error', 'see its log')})")
    states = {name: State(record["status"]) for name, record in records.items()}
    if note.get("status") == State.PAUSED or State.PAUSED in states.values():
        return Ended(State.PAUSED)
    unfinished = next((name for name, state in states.items() if state is not State.DONE), None)
    if unfinished is None:
        return Ended(State.DONE)
    how = {State.ABSENT: "there is none", State.RUNNING: "it says running"}.get(states[unfinished], states[unfinished])
    return Ended(State.RUNNING, f"completed, but its output holds no finished {unfinished} stage ({how})")
