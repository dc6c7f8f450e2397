"""What a run is asked to do, and what it would do: its options, the stages that they choose, and `--explain`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nbutils.core.errors import UserError
from nbutils.core.run.decide import Action, Policy, StageState, decide, inspect
from nbutils.core.run.stage import upstream_problem
from nbutils.core.run.state import State, in_short
from nbutils.core.settings import nearest
from nbutils.pipeline.display import Display
from nbutils.pipeline.parameters import Plan, Planned

LOOK = "look again"
"""For a stage whose state depends on what a stage before it, which runs first, will make."""


@dataclass(frozen=True)
class Options:
    """What the command line asks of a run."""

    only: str | None = None
    start: str | None = None
    accept: bool = False
    force: bool = False
    allow_paused: bool = False
    cell_minutes: float | None = None
    until: str | None = None

    @property
    def again(self) -> str:
        """The option that runs every chosen stage again, whatever it has done so far; '' where none does."""
        return "--from" if self.start else "--force" if self.force and self.only else ""

    @property
    def policy(self) -> Policy:
        """What the options say about work that is there."""
        return Policy(self.accept, self.force, bool(self.again), self.allow_paused)


def chosen(plan: Plan, options: Options) -> list[Planned]:
    """The stages that --only, --from and --until leave. UserError for a name that is no stage with a notebook."""
    names = [planned.stage.name for planned in plan.stages]
    start, until = options.only or options.start, options.only or options.until
    for name in (options.only, options.start, options.until):
        if name is not None and name not in names:
            raise UserError(
                f"There is no stage '{name}' here; the stages are {', '.join(names)}.{nearest(name, names)}"
            )
    if options.until and options.only:
        raise UserError("--until goes alone or with --from, not with --only, which is one stage already.")
    if options.until and options.start and names.index(options.until) < names.index(options.start):
        raise UserError(f"--until {options.until} comes before --from {options.start}, so that nothing would run.")
    return plan.stages[names.index(start) if start else 0 : names.index(until) + 1 if until else None]


def asks_first(picked: list[Planned], options: Options) -> StageState | None:
    """The first stage whose long work is stale for reasons that running earlier stages again cannot cure.

    A run asks about it before it does anything.
    """
    states = (inspect(planned.stage, planned.settings) for planned in picked)
    return next((state for state in states if decide(state.lasting, options.policy) is Action.ASK), None)


def explain(plan: Plan, options: Options, display: Display) -> int:
    """Prints for each stage what a run would do with it, and why. It decides as the run does, and executes nothing."""
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
        if name == stop:
            yield name, Action.ASK, state.reason
            continue
        if stop:
            yield name, f"wait for an answer to {stop}" if first else f"not reached after {stop}", state.reason
            continue
        action, reason = _foreseen(planned, state, options, states, again)
        yield name, action, reason
        if action in (Action.ASK, Action.REFUSE):
            stop = name
        elif action not in (Action.SKIP, Action.KEEP, Action.LEAVE):
            again.add(name)
            states[name] = State.DONE


def _foreseen(
    planned: Planned, state: StageState, options: Options, states: dict[str, State], again: set[str]
) -> tuple[str, str]:
    """The action, or LOOK where it is not known before an earlier stage has run, and why."""
    problem = upstream_problem(planned.stage, planned.settings, options.allow_paused, lambda name: states[name])
    if problem:
        return Action.REFUSE, problem.rstrip(".")
    waits = sorted(again & {*planned.stage.reads, *planned.stage.consults})
    if waits and state.state is not State.ABSENT and (options.accept or not options.again):
        return LOOK, f"after {', '.join(waits)}; so far {state.reason}"
    action, reason = decide(state, options.policy), state.reason
    if action is Action.REFUSE:
        reason = f"its checkpoints belong to other settings or data: {in_short(state.blocking)}"
    return action, reason
