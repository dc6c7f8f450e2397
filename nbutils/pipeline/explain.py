"""`--explain`: what a run would do with each stage, and why. It decides as the run does, and executes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from nbutils.core.record import stage_status
from nbutils.core.stage import upstream_problem
from nbutils.core.verdict import Verdict, in_short, judge, not_continued
from nbutils.pipeline.choice import Action, Options, asks_first, chosen, decide
from nbutils.pipeline.display import Display
from nbutils.pipeline.parameters import Plan, Planned

LOOK = "look again"
"""For a stage whose verdict depends on what a stage before it, which runs first, will make."""


def explain(plan: Plan, options: Options, display: Display) -> int:
    """Prints a line for each stage; the exit status."""
    for name, action, reason in foreseen(plan, options):
        display.say(f"{name}: {action} ({reason})")
    return 0


def foreseen(plan: Plan, options: Options) -> Iterator[tuple[str, str, str]]:
    """Each stage of a plan, what a run would do with it, and why."""
    picked, first = chosen(plan, options), asks_first(chosen(plan, options), options)
    stop = first[0].stage.name if first else ""  # the stage at which the run would end
    status: dict[str, str] = {}  # of each stage, when the next ones read it
    anew: set[str] = set()
    for planned in plan.stages:
        name, verdict = planned.stage.name, judge(planned.stage, planned.settings)
        status[name] = stage_status(plan.run, name)
        if planned not in picked:
            yield name, "left as it stands", verdict.reason
            continue
        if stop and not (first and planned is first[0]):
            yield name, f"wait for an answer to {stop}" if first else f"not reached after {stop}", verdict.reason
            continue
        action, reason = _foreseen(planned, verdict, options, status, anew)
        if first:
            action, reason = Action.ASK, verdict.reason
        yield name, action, reason
        if action in (Action.ASK, Action.REFUSE):
            stop = name
        elif action not in (Action.SKIP, Action.KEEP, Action.LEAVE):
            anew.add(name)
            status[name] = "done"


def _foreseen(
    planned: Planned, verdict: Verdict, options: Options, status: dict[str, str], anew: set[str]
) -> tuple[str, str]:
    problem = upstream_problem(planned.stage, planned.settings, options.allow_paused, lambda name: status[name])
    if problem:
        return Action.REFUSE, problem.rstrip(".")
    waits = sorted(anew & {*planned.stage.reads, *planned.stage.consults})
    if waits and verdict.state != "absent" and (options.accept or not options.anew):
        return LOOK, f"after {', '.join(waits)}; so far {verdict.reason}"
    action = decide(verdict, options)
    if action is Action.REFUSE:
        return action, f"its checkpoints belong to other settings or data: {in_short(not_continued(verdict))}"
    return action, verdict.reason
