"""What a run is asked to do: its options, and the stages that they choose."""

from __future__ import annotations

from dataclasses import dataclass

from nbutils.core.errors import UserError
from nbutils.core.run.decide import Action, Policy, StageState, decide, inspect
from nbutils.core.settings import nearest
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
    for name in (options.only, options.start, options.until):
        if name is not None and name not in names:
            raise UserError(
                f"There is no stage '{name}' here; the stages are {', '.join(names)}.{nearest(name, names)}"
            )
    if options.until and options.only:
        raise UserError("--until goes alone or with --from, not with --only, which is one stage already.")
    if options.until and options.start and names.index(options.until) < names.index(options.start):
        raise UserError(f"--until {options.until} comes before --from {options.start}, so that nothing would run.")
    if options.only:
        return [planned for planned in plan.stages if planned.stage.name == options.only]
    end = names.index(options.until) + 1 if options.until else None
    return plan.stages[names.index(options.start) if options.start else 0 : end]


def asks_first(picked: list[Planned], options: Options) -> StageState | None:
    """The first stage whose long work is stale for reasons that running earlier stages again cannot cure.

    A run asks about it before it does anything.
    """
    states = (inspect(planned.stage, planned.settings) for planned in picked)
    return next((state for state in states if decide(state.lasting, options.policy).action is Action.ASK), None)
