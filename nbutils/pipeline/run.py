"""`python -m nbutils run`: runs a profile's notebooks in order, skips what is done, and never throws work away."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import dropwhile
from pathlib import Path

from nbutils.core.errors import UserError
from nbutils.core.files import Json, shown
from nbutils.core.notebooks import notebook_path
from nbutils.core.run import pause
from nbutils.core.run.decide import Action, StageState, carry_out, decide, progress_words
from nbutils.core.run.layout import Run
from nbutils.core.run.record import RECORD, write_record
from nbutils.core.run.stage import check_upstream, locked
from nbutils.core.run.state import State
from nbutils.pipeline.choice import STAYS, Options, asks_first, chosen, explain
from nbutils.pipeline.display import Display
from nbutils.pipeline.parameters import Plan, Planned, add_profile, planned_by
from nbutils.pipeline.supervise import Supervisor, end, run_mark, taking


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `run`."""
    add_profile(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--from", metavar="STAGE", dest="start", help="rerun this stage and all later ones")
    which.add_argument("--only", metavar="STAGE", help="run this stage alone, on the earlier ones as they are")
    parser.add_argument("--until", metavar="STAGE", help="run no stage after this one")
    add_stale(parser)
    parser.add_argument(
        "--allow-paused", action="store_true", help="run later stages on a paused training's checkpoint"
    )
    parser.add_argument(
        "--cool-down", metavar="RUN[@CHECKPOINT]",
        help="end the constant part of a wsd run with a cool-down, in a new run folder",
    )  # fmt: skip
    parser.add_argument("--explain", action="store_true", help="say what would be run and why, and run nothing")
    parser.add_argument(
        "--cell-minutes", metavar="N", type=minutes, help="fail a cell that takes longer (default: no limit)"
    )


def add_stale(parser: argparse.ArgumentParser) -> None:
    """The arguments with which a person says what becomes of long work that is stale."""
    stale = parser.add_mutually_exclusive_group()
    stale.add_argument("--accept", action="store_true", help="keep long work that is stale, as if it were not")
    stale.add_argument("--force", action="store_true", help="set long work that is stale aside and start again")


def main(arguments: argparse.Namespace) -> int:
    """Runs a profile; the exit status."""
    display = Display()
    options = Options(**{field.name: getattr(arguments, field.name) for field in fields(Options)})
    planned = planned_by(arguments)
    if arguments.cool_down:
        from nbutils.pipeline.cool_down import cooled

        planned = cooled(arguments, planned)
        if arguments.explain and not planned.run.exists():
            return 0  # it has said what would begin
    if arguments.explain:
        return explain(planned, options, display)
    return go(planned, options, display)


def go(planned: Plan, options: Options, display: Display) -> int:
    """Runs what a plan asks for; the exit status."""
    return Runner(planned, options, display, _execute).go()


def minutes(text: str) -> float:
    """A time limit of the command line: above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


NOT_RUN, SKIPPED = "not run", "skipped"


class StageFailed(Exception):
    """Why a notebook did not come to its end, in a sentence; `interrupted` where a signal may have brought it about."""

    def __init__(self, sentence: str, interrupted: bool = False) -> None:
        super().__init__(sentence)
        self.interrupted = interrupted


@dataclass
class Job:
    """The notebook, where its executed copy is written, and how it is executed."""

    source: Path
    target: Path
    parameters: Json
    supervisor: Supervisor
    display: Display
    options: Options
    autosave_seconds: float = 30


@dataclass
class Runner:
    """One call of the pipeline on one run folder."""

    plan: Plan
    options: Options
    display: Display
    execute: Callable[[Job], None]

    def __post_init__(self) -> None:
        self.folder = Run(self.plan.run)
        self.supervisor = Supervisor(self.plan.run, self.display.say)
        self.results: dict[str, tuple[str, str]] = {}  # status and seconds
        self.sentence = ""
        self.chosen = chosen(self.plan, self.options)

    def go(self) -> int:
        """Executes what has to be executed; the exit status: 0 done or paused, 1 failed, 128 + n ended by signal n."""
        with locked(self.plan.run), taking(self.supervisor.take):
            pause.clear(self.plan.run)
            left = end(run_mark(self.plan.run))
            if left:
                self.display.say(f"Ended {left} process(es) that an earlier run had left behind.")
            self._warn_of_stale_upstream()
            if first := asks_first(self.chosen, self.options):
                carry_out(Action.ASK, first)
            self._look_ahead(self.chosen)
            try:
                status = self._stages()
            finally:
                pause.clear(self.plan.run)
                self._table()
        self._last_words()
        return status

    def _look_ahead(self, stages: list[Planned]) -> None:
        """UserError for what one of the stages would stop over, from the first one on that has something to do."""
        pending = list(dropwhile(lambda each: decide(each.state(), self.options) in STAYS, stages))
        if pending:
            from nbutils.pipeline.ahead import problems  # imports pandas: `--explain` doesn't wait for it

            if stops := problems(self.plan, pending):
                raise UserError(" ".join(stops))

    def _stages(self) -> int:
        """Skips or executes each stage; the exit status."""
        for number, planned in enumerate(self.chosen, 1):
            name = planned.name
            if self.supervisor.asked:
                self.sentence = f"Stopped before {name}; run the same command again to go on."
                return 128 + self.supervisor.asked
            check_upstream(planned.stage, planned.settings, self.options.allow_paused)
            state = planned.state()
            decision = decide(state, self.options)
            if not decision.clears and (differing := state.library_changes):
                self.display.say(f"{name} was made with {differing}; nothing is rerun for that.")
            self._prepare(state, decision)
            if decision in STAYS and state.state is State.PAUSED:
                self.results[name] = State.PAUSED, "–"
                self.sentence = self._paused(name)
            elif decision in STAYS:
                self.results[name] = SKIPPED, "–"
            else:
                reason = "again, as asked" if decision.clears and not state.stale else state.reason
                status = self._run_notebook(planned, f"[{number}/{len(self.chosen)}] {name}", reason)
                if status is not None:
                    return status
                self._look_ahead(self.chosen[number:])  # more is known now
        return 0

    def _prepare(self, state: StageState, decision: Action) -> None:
        """Does to the stage's folder what has been decided. UserError where a person decides."""
        try:
            aside = carry_out(decision, state)
        except OSError as error:
            where = shown(str(error.filename or state.folder))
            raise UserError(
                f"{where} cannot be changed ({error.strerror}): choose another run_dir, or free the disk."
            ) from None
        if aside is not None:
            self.display.say(f"{state.spec.name}: set the earlier work aside in {shown(aside)}.")
        elif decision.accepts:
            self.display.say(f"{state.spec.name}: kept as it is, as --accept asks.")

    def _run_notebook(self, planned: Planned, which: str, reason: str) -> int | None:
        """Executes a stage's notebook; an exit status where the run ends with it."""
        name, source, started = planned.name, notebook_path(planned.stage), time.time()
        target = self.plan.run / "notebooks" / source.name
        job = Job(source, target, planned.injected, self.supervisor, self.display, self.options)
        error: StageFailed | None = None
        self.display.say(f"{which}: {source.name} — {reason}")
        with self.supervisor.stage(planned.stage.pausable):
            try:
                self.execute(job)
            except StageFailed as raised:
                error = raised
        self.display.flush()
        seconds, asked = time.time() - started, self.supervisor.asked
        record = self.folder.record(name)
        fresh = record and datetime.fromisoformat(record["started"]).timestamp() >= started
        # papermill's own word is not enough: the stage's record says it
        status = State(record["status"]) if record and fresh and record["status"] != State.RUNNING else State.FAILED
        self.results[name] = status, f"{seconds:.1f}"
        if status is not State.FAILED:
            if error and not asked:
                self.display.say(f"{name} is {status}, but after stage.finish() {error}")
            if status is State.DONE:
                return None
            self.sentence = self._paused(name)
            if self.options.allow_paused and not asked:
                return None
            if later := [p.name for p in self.chosen[self.chosen.index(planned) + 1 :]]:
                self.sentence += f" {', '.join(later)} wait (--allow-paused runs them on the newest checkpoint)."
            return 0
        if asked and (error is None or error.interrupted):
            early = planned.stage.pausable and self.supervisor.ended
            how = f"ended by {asked.name} before it had saved a checkpoint" if early else f"stopped by {asked.name}"
            sentence = f"{name} was {how}; run the same command again to go on from this stage."
        else:
            sentence = str(error or f"{source.name} ran to its end: let its last cell call stage.finish().")
        self._note_failure(name, sentence, seconds)
        self.sentence = sentence + (f" What ran so far is in {shown(target)}." if target.is_file() else "")
        return 128 + asked if asked else 1

    def _paused(self, name: str) -> str:
        """How far a paused stage is, and how to go on."""
        record = self.folder.record(name) or {}
        how = record.get("facts", {}).get("how_to_continue") or "run the same command again to go on"
        if self.options.allow_paused:
            how = "run again without --allow-paused to go on with it"
        return f"{name} is paused{progress_words(record)}: {how.rstrip('.')}."

    def _note_failure(self, name: str, sentence: str, seconds: float) -> None:
        record = self.folder.record(name)
        if record and record["status"] == State.RUNNING:
            record |= {"status": State.FAILED, "error": sentence, "seconds": round(seconds, 1)}
            record["work_seconds"] = round(record.get("work_seconds", 0.0) + seconds, 1)
            with suppress(OSError):  # on a full disk it stays one that was interrupted
                write_record(self.folder.folder(name) / RECORD, record)

    def _table(self) -> None:
        """The final table: a row for each stage of the plan, executed or not; what it made by its own record."""
        rows = []
        for planned in self.plan.stages:
            name = planned.name
            left = NOT_RUN if planned in self.chosen else self.folder.state(name)
            status, seconds = self.results.get(name, (left, "–"))
            record = self.folder.record(name) if status != NOT_RUN else None
            rows.append((name, status, seconds, (record or {}).get("facts", {}).get("made", "")))
        self.display.table(rows)

    def _last_words(self) -> None:
        if self.sentence:
            if self.options.again:
                self.sentence += f" Leave out {self.options.again} then: with it the stage starts again."
            self.display.say(self.sentence)
        elif {status for status, _ in self.results.values()} != {SKIPPED}:
            return
        elif self.options.only:
            self.display.say(f"{self.options.only} is done already; --force runs it again.")
        else:
            self.display.say(f"Nothing to do: all {len(self.chosen)} stages in {shown(self.plan.run)} are done.")

    def _warn_of_stale_upstream(self) -> None:
        for planned in self.plan.stages:
            read = any(planned.name in later.stage.reads for later in self.chosen)
            if planned not in self.chosen and read and (state := planned.state()).stale:
                self.display.say(f"Warning: {state.spec.name} is used as it is, but {state.reason}.")


def _execute(job: Job) -> None:
    """Imported when the first notebook has to run: a run in which nothing happens doesn't wait for it."""
    from nbutils.pipeline.execution import execute

    execute(job)
