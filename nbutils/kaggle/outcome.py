"""How a notebook's newest version on Kaggle ended, by the records in its output."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from nbutils.core.errors import UserError
from nbutils.core.files import sha256_of_file, sha256_of_json
from nbutils.core.notebooks import stages
from nbutils.core.record import stage_record
from nbutils.kaggle.account import Account
from nbutils.kaggle.bundle import stage_of
from nbutils.kaggle.earlier import runs_below
from nbutils.kaggle.ending import FAILED, PAUSED, read_ending
from nbutils.kaggle.place import WHOLE

RECORDS = r"(^|/)(stage|run|session)\.json$"
"""What is downloaded of an output to look at."""


@dataclass(frozen=True)
class Outcome:
    """`status`: done, paused, failed, or unfinished; `words` say the last two in a sentence.

    `mark` tells one session's output from another's.
    """

    status: str
    words: str = ""
    mark: str = ""


def outcome_of(account: Account, address: str) -> Outcome:
    """How the newest version ended, which has to be complete."""
    stage = stage_of(address)
    names = [each.name for each in stages()] if stage == WHOLE else [stage]
    with tempfile.TemporaryDirectory() as folder:
        account.output(address, Path(folder), RECORDS)
        found = [_of_run(run, names) for run in runs_below(Path(folder))]
        mark = sha256_of_json({str(p.relative_to(folder)): sha256_of_file(p) for p in Path(folder).rglob("*.json")})
    order = ["failed", "paused", "done", "unfinished"]
    nothing = Outcome("unfinished", f"completed, but its output holds no finished {names[-1]} stage")
    return replace(min(found, key=lambda outcome: order.index(outcome.status), default=nothing), mark=mark)


def _of_run(run: Path, names: list[str]) -> Outcome:
    try:
        ending = read_ending(run) or {}
        records = {name: stage_record(run, name) or {} for name in names}
    except UserError as error:
        return Outcome("unfinished", f"completed, but its output cannot be read ({error})")
    if ending.get("status") == FAILED:
        return Outcome("failed", f"has published a failed {ending['stage']} ({ending.get('error', 'see its log')})")
    for name, record in records.items():
        if record.get("status") == "failed":
            return Outcome("failed", f"has published a failed {name} ({record.get('error', 'see its log')})")
    statuses = {name: record.get("status", "absent") for name, record in records.items()}
    if ending.get("status") == PAUSED or "paused" in statuses.values():
        return Outcome("paused")
    unfinished = next((name for name, status in statuses.items() if status != "done"), None)
    if unfinished is None:
        return Outcome("done")
    how = {"absent": "there is none", "running": "it says running"}.get(statuses[unfinished], statuses[unfinished])
    return Outcome("unfinished", f"completed, but its output holds no finished {unfinished} stage ({how})")
