"""What a run is asked to do, and what it would do: its options, the stages that they choose, and `--explain`."""

from __future__ import annotations

from dataclasses import dataclass

from nbutils.core.errors import UserError
from nbutils.core.run.decide import Action, Policy, StageState, decide
from nbutils.core.run.stage import check_upstream
from nbutils.core.run.state import State
from nbutils.core.settings import nearest
from nbutils.pipeline.display import Display
from nbutils.pipeline.parameters import Plan, Planned

STAYS = (Action.SKIP, Action.KEEP, Action.LEAVE)
"""What is done with a stage whose notebook is not executed."""


@dataclass(frozen=True)
class Options(Policy):
    """What the command line asks of a run, also about work that is there."""

    only: str | None = None
    start: str | None = None
    cell_minutes: float | None = None
    until: str | None = None

    @property
    def again(self) -> str:
        """See `Policy`."""
        return "--from" if self.start else "--force" if self.force and self.only else ""


def chosen(plan: Plan, options: Options) -> list[Planned]:
    """The stages that --only, --from and --until leave. UserError for a name that is no stage with a notebook."""
    names = [planned.name for planned in plan.stages]
    for name in filter(None, (options.only, options.start, options.until)):
        if name not in names:
            raise UserError(
                f"There is no stage '{name}' here; the stages are {', '.join(names)}.{nearest(name, names)}"
            )
    first = names.index(options.only or options.start or names[0])
    last = min(names.index(options.only or names[-1]), names.index(options.until or names[-1]))
    if last < first:
        raise UserError(f"--until {names[last]} comes before {names[first]}, so that nothing would run.")
    return plan.stages[first : last + 1]


def asks_first(picked: list[Planned], options: Options) -> StageState | None:
    """The first stage whose long work is stale for reasons that running earlier stages again cannot cure.

    A run asks about it before it does anything.
    """
    states = (planned.state() for planned in picked)
    return next((state for state in states if decide(state.lasting, options) is Action.ASK), None)


def explain(plan: Plan, options: Options, display: Display) -> int:
    """Prints for each stage what a run would do with it, and why. It decides as the run does, and executes nothing."""
    picked = chosen(plan, options)
    first = asks_first(picked, options)
    stop = first.spec.name if first else ""  # the stage at which the run would end
    states: dict[str, State] = {}  # of each stage, when the next ones read it
    again = set[str]()

    def foreseen(planned: Planned, state: StageState) -> tuple[str, str]:
        """The action (`look again` where it is not known before an earlier stage has run), and why."""
        try:
            check_upstream(planned.stage, planned.settings, options.allow_paused, states.__getitem__)
        except UserError as error:
            return Action.REFUSE, str(error).rstrip(".")
        waits = sorted(again & {*planned.stage.reads, *planned.stage.consults})
        if waits and state.state is not State.ABSENT and (options.accept or not options.again):
            return "look again", f"after {', '.join(waits)}; so far {state.reason}"
        return decide(state, options), state.reason

    for planned in plan.stages:
        name, state = planned.name, planned.state()
        states[name], words, reason = state.state, "left as it is", state.reason
        if planned in picked and stop:
            words = Action.ASK if name == stop else f"wait for {stop}"
        elif planned in picked:
            words, reason = foreseen(planned, state)
            if words in (Action.ASK, Action.REFUSE):
                stop = name
            elif words not in STAYS:
                again.add(name)
                states[name] = State.DONE
        display.say(f"{name}: {words} ({reason})")
    return 0
