"""The final table of a run: a row for each stage of its plan, executed or not."""

from __future__ import annotations

from pathlib import Path

from nbutils.core.files import shown
from nbutils.core.run.layout import Run
from nbutils.core.run.state import State
from nbutils.core.text import size
from nbutils.pipeline.display import Row
from nbutils.pipeline.parameters import Plan, Planned


def all_rows(rows: list[Row], plan: Plan, chosen: list[Planned]) -> list[Row]:
    """The rows of what was looked at, and one for each other stage, in the plan's order."""
    found = {row.stage: row for row in rows}
    return [
        found.get(planned.stage.name) or _untouched(plan.run, planned.stage.name, planned in chosen)
        for planned in plan.stages
    ]


def made(run: Path, name: str) -> str:
    """What a stage made, in a line: its own words, or the count and size of its files."""
    record = Run(run).record(name)
    if record is None or record["status"] not in (State.DONE, State.PAUSED):
        return ""
    if words := record.get("facts", {}).get("made"):
        return str(words)
    outputs = record["outputs"].values()
    amount = size(sum(entry["bytes"] for entry in outputs))
    return f"{len(outputs)} file{'s' if len(outputs) != 1 else ''}, {amount} in {shown(run / name)}"


def _untouched(run: Path, name: str, waiting: bool) -> Row:
    state = Run(run).state(name)
    word = {State.DONE: "kept", State.ABSENT: "not run"}.get(state, state)
    return Row(name, "not run" if waiting else word, None, "" if waiting else made(run, name))
