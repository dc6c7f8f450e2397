"""What a run is asked to do: its options, the stages that they choose, and what is done with each of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nbutils.core.cachekey import UPSTREAM
from nbutils.core.errors import UserError
from nbutils.core.settings import nearest
from nbutils.core.verdict import Verdict, judge, not_continued
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
    def anew(self) -> str:
        """The option that has every chosen stage begin anew, whatever it has done so far; '' where none does."""
        return "--from" if self.start else "--force" if self.force and self.only else ""


class Action(StrEnum):
    """What is done with a stage, in the words of `--explain`."""

    SKIP = "skip"
    RUN = "run"
    AGAIN = "run again"
    ASIDE = "set aside and run"
    ON = "go on"
    LEAVE = "leave paused"
    KEEP = "keep"
    KEEP_ON = "keep and go on"
    ASK = "ask"
    REFUSE = "refuse"


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
        raise UserError(f"--until {options.until} lies before --from {options.start}, so that nothing would run.")
    if options.only:
        return [planned for planned in plan.stages if planned.stage.name == options.only]
    end = names.index(options.until) + 1 if options.until else None
    return plan.stages[names.index(options.start) if options.start else 0 : end]


def decide(verdict: Verdict, options: Options) -> Action:
    """What is done with a chosen stage once all that it reads stands as it will be read."""
    if verdict.state == "absent":
        return Action.RUN
    stale = verdict.state == "stale"
    if stale and verdict.protected and options.accept:
        if not_continued(verdict):
            return Action.REFUSE
        stays = verdict.status == "done" or (verdict.status == "paused" and options.allow_paused)
        return Action.KEEP if stays else Action.KEEP_ON
    if stale and verdict.protected and not (options.force or options.start):
        return Action.ASK
    if stale or options.anew:
        return Action.ASIDE if verdict.protected else Action.AGAIN
    if verdict.state == "done":
        return Action.SKIP
    return Action.LEAVE if verdict.state == "paused" and options.allow_paused else Action.ON


def asks_first(picked: list[Planned], options: Options) -> tuple[Planned, Verdict] | None:
    """The chosen stage, and its verdict, whose long work no longer fits whatever the earlier ones come to.

    A run asks about it before it does anything.
    """
    if options.accept or options.force or options.start:
        return None
    for planned in picked:
        verdict = judge(planned.stage, planned.settings)
        # What an earlier stage of this run makes anew may fit again.
        lasting = [words for words in verdict.changed if not words.startswith(UPSTREAM)]
        if verdict.protected and lasting:
            return planned, verdict
    return None
