"""`--explain`: what a run would do with each stage, and why. It decides as the run does, and executes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from nbutils.core.run.decide import Action, StageState, decide, inspect
from nbutils.core.run.stage import upstream_problem
from nbutils.core.run.state import State, in_short
from nbutils.pipeline.choice import Options, asks_first, chosen
from nbutils.pipeline.display import Display
from nbutils.pipeline.parameters import Plan, Planned

LOOK = "look again"
"""For a stage whose state depends on what a stage before it, which runs first, will make."""


def explain(plan: Plan, options: Options, display: Display) -> int:
    """Prints a line for each stage; the exit status."""
    for name, action, reason in foreseen(plan, options):
        display.say(f"{name}: {action} ({reason})")
    return 0


def foreseen(plan: Plan, options: Options) -> Iterator[tuple[str, str, str]]:
    """Each stage of a plan, what a run would do with it, and why."""
    picked = chosen(plan, options)
    first = asks_first(picked, options)
    stop = first.spec.name if first else ""  # the stage at which the run would end
    states: dict[str, State] = {}  # of each stage, when the next ones read it
    again: set[str] = set()
    for planned in plan.stages:
        name, state = planned.stage.name, inspect(planned.stage, planned.settings)
        states[name] = state.state
        if planned not in picked:
            yield name, "left as it is", state.reason
            continue
        if first and first.spec.name == name:
            yield name, Action.ASK, state.reason
            continue
        if stop:
            yield name, f"wait for an answer to {stop}" if first else f"not reached after {stop}", state.reason
            continue
        action, words, reason = _foreseen(planned, state, options, states, again)
        yield name, words, reason
        if action in (Action.ASK, Action.REFUSE):
            stop = name
        elif action in (Action.RUN, Action.RESUME, None):
            again.add(name)
            states[name] = State.DONE


def _foreseen(
    planned: Planned, state: StageState, options: Options, states: dict[str, State], again: set[str]
) -> tuple[Action | None, str, str]:
    """The action (None: not known before an earlier stage has run), its words, and why."""
    problem = upstream_problem(planned.stage, planned.settings, options.allow_paused, lambda name: states[name])
    if problem:
        return Action.REFUSE, Action.REFUSE, problem.rstrip(".")
    waits = sorted(again & {*planned.stage.reads, *planned.stage.consults})
    if waits and state.state is not State.ABSENT and (options.accept or not options.again):
        return None, LOOK, f"after {', '.join(waits)}; so far {state.reason}"
    decision = decide(state, options.policy)
    reason = state.reason
    if decision.action is Action.REFUSE:
        reason = f"its checkpoints belong to other settings or data: {in_short(state.blocking)}"
    return decision.action, str(decision), reason
