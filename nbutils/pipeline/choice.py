"""What a run is asked to do: its options, the stages that they choose, and the plan put in words (`--explain`)."""

from __future__ import annotations

from dataclasses import dataclass

from nbutils.core.errors import UserError
from nbutils.core.settings import nearest
from nbutils.core.verdict import Verdict, judge
from nbutils.pipeline.display import Display
from nbutils.pipeline.parameters import Plan, Planned


@dataclass(frozen=True)
class Options:
    """What the command line asks of a run."""

    only: str | None = None
    start: str | None = None
    accept: bool = False
    force: bool = False
    allow_paused: bool = False
    cell_minutes: float | None = None


def chosen(plan: Plan, options: Options) -> list[Planned]:
    """The stages that --only and --from leave. UserError for a name that is no stage with a notebook."""
    names = [planned.stage.name for planned in plan.stages]
    for name in (options.only, options.start):
        if name is not None and name not in names:
            raise UserError(
                f"There is no stage '{name}' here; the stages are {', '.join(names)}.{nearest(name, names)}"
            )
    if options.only:
        return [planned for planned in plan.stages if planned.stage.name == options.only]
    return plan.stages[names.index(options.start) if options.start else 0 :]


def explain(plan: Plan, options: Options, display: Display) -> int:
    """Prints what a run would do with each stage, and why; executes nothing."""
    picked = chosen(plan, options)
    rerun: set[str] = set()
    for planned in plan.stages:
        name, verdict = planned.stage.name, judge(planned.stage, planned.settings)
        waits = sorted(rerun & set(planned.stage.reads))
        if planned not in picked:
            display.say(f"{name}: left as it stands ({verdict.reason})")
            continue
        if waits and verdict.state != "absent":
            action, reason = "look again", f"after {', '.join(waits)}; so far {verdict.reason}"
        else:
            action, reason = _action(verdict, options), verdict.reason
        if action not in ("skip", "ask"):
            rerun.add(name)
        display.say(f"{name}: {action} ({reason})")
    return 0


def _action(verdict: Verdict, options: Options) -> str:
    named = options.only is not None or options.start is not None
    if verdict.state == "stale" and verdict.protected and not (options.force and named):
        return "keep" if options.accept else "set aside and run" if options.force else "ask"
    if verdict.state == "done":
        return "run again" if options.start or (options.force and named) else "skip"
    if verdict.state == "paused" and options.allow_paused:
        return "leave paused"
    return {"absent": "run", "stale": "run again", "paused": "go on", "interrupted": "go on"}[verdict.state]
