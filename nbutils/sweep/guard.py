"""What a training has cost: the base and the leading trials on tasks that have nothing to do with the training."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from nbutils.core.errors import UserError
from nbutils.core.files import Json
from nbutils.core.stages import maker
from nbutils.core.text import number
from nbutils.evaluate.settings import EvaluateSettings
from nbutils.pipeline.parameters import Plan, Planned, settings_of


def read_guard(text: str) -> dict[str, int]:
    """Tasks with their numbers of items, 0 for all, from `hellaswag:200,sciq`. UserError for anything else."""
    found: dict[str, int] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        match = re.fullmatch(r"([^:]+)(:([1-9][0-9]*))?", part)
        if not match or match[1] in found:
            raise UserError(
                f"The guard has {part!r}: give each task once, as TASK:ITEMS, such as hellaswag:200,sciq:200."
            )
        found[match[1]] = int(match[3] or 0)
    return found


def guarded(plan: Plan, tasks: Sequence[str], items: int = 0) -> Planned:
    """The evaluation of a run that scores its base and its model on these tasks."""
    stage = maker("scores")
    asked = next(planned for planned in plan.stages if planned.stage == stage).injected
    asked |= {"tasks": list(tasks), "limit": items, "peers": []}
    return Planned(stage, settings_of(stage, asked), asked)


def losses(plan: Plan, guard: Mapping[str, int], say: Callable[[str], None]) -> list[Json]:
    """A row for each task: the run's model against its base on the same items, with a 95 % interval.

    A task that cannot be scored is said and left out. What the evaluation's cache knows is not scored again.
    """
    from nbutils.evaluate.report import results  # imports torch
    from nbutils.evaluate.run import prepare, score_all

    rows: list[Json] = []
    for items in dict.fromkeys(guard.values()):
        settings = guarded(plan, [task for task, count in guard.items() if count == items], items).settings
        assert isinstance(settings, EvaluateSettings)
        prepared = prepare(settings)
        found = results(prepared, score_all(prepared, say), {})["paired"]
        for why in prepared.left_out.values():
            say(why)
        for task in prepared.tasks:
            pairs = {pair["metric"]: pair for pair in found if pair["task"] == task}
            rows += [pairs[name] for name in ("acc_norm", *pairs) if name in pairs][:1]  # one is told of
    return rows


def in_words(row: Json) -> str:
    """A row in a sentence: `hellaswag −1.5 points [−4.0, +1.0]: not distinguishable`."""
    accuracy = row["metric"].startswith("acc")
    shown = [f"{100 * row[key]:+.1f}" if accuracy else number(row[key], "+") for key in ("difference", "low", "high")]
    value, low, high = (text.replace("-", "−") for text in shown)
    unit = "points" if accuracy else row["metric"]
    return f"{row['task']} {value} {unit} [{low}, {high}]: {row['word']}"
