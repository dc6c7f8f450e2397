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
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.core.notebooks import notebook_path
from nbutils.core.run import pause
from nbutils.core.run.decide import Action, StageState, carry_out, decide, inspect, progress_words, question
from nbutils.core.run.layout import Run
from nbutils.core.run.record import RECORD, write_record
from nbutils.core.run.stage import check_upstream, locked
from nbutils.core.run.state import State
from nbutils.pipeline.choice import Options, asks_first, chosen, explain
from nbutils.pipeline.display import Display, Row
from nbutils.pipeline.parameters import Plan, Planned, plan
from nbutils.pipeline.profile import add_profile, profile_path
from nbutils.pipeline.supervise import Supervisor, end, run_mark


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `run`."""
    add_profile(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--from", metavar="STAGE", dest="start", help="rerun this stage and all later ones")
    which.add_argument("--only", metavar="STAGE", help="run this stage alone, on the earlier ones as they are")
    parser.add_argument("--until", metavar="STAGE", help="run no stage after this one")
    stale = parser.add_mutually_exclusive_group()
    stale.add_argument("--accept", action="store_true", help="keep long work that is stale, as if it were not")
    stale.add_argument("--force", action="store_true", help="set long work that is stale aside and start again")
    parser.add_argument(
        "--allow-paused", action="store_true", help="run later stages on a paused training's checkpoint"
    )
    parser.add_argument("--explain", action="store_true", help="say what would be run and why, and run nothing")
    parser.add_argument(
        "--cell-minutes", metavar="N", type=minutes, help="fail a cell that takes longer (default: no limit)"
    )


def main(arguments: argparse.Namespace) -> int:
    """Runs a profile; the exit status."""
    display = Display()
    options = Options(**{field.name: getattr(arguments, field.name) for field in fields(Options)})
    planned = plan(profile_path(arguments.profile), arguments.overrides, arguments.run_dir)
    if arguments.explain:
        return explain(planned, options, display)
    return Runner(planned, options, display, _execute).go()


def minutes(text: str) -> float:
    """A time limit of the command line: above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


NOT_RUN = "not run"


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
    parameters: dict[str, Any]
    supervisor: Supervisor
    display: Display
    options: Options
    autosave_seconds: float = 30


class Runner:
    """One call of the pipeline on one run folder."""

    def __init__(self, plan: Plan, options: Options, display: Display, execute: Callable[[Job], None]) -> None:
        self.plan = plan
        self.folder = Run(plan.run)
        self.options = options
        self.display = display
        self.supervisor = Supervisor(plan.run, display.say)
        self.rows: dict[str, Row] = {}
        self.sentence = ""
        self._execute = execute
        self.chosen = chosen(plan, options)

    def go(self) -> int:
        """Executes what has to be executed; the exit status: 0 done or paused, 1 failed, 128 + n ended by signal n."""
        with locked(self.plan.run), self.supervisor.listening():
            pause.clear(self.plan.run)
            left = end(run_mark(self.plan.run))
            if left:
                self.display.say(f"Ended {left} process(es) that an earlier run had left behind.")
            self._warn_of_stale_upstream()
            if first := asks_first(self.chosen, self.options):
                raise question(first)
            self._look_ahead()
            try:
                status = self._stages()
            finally:
                pause.clear(self.plan.run)
                self._table()
        self._last_words()
        return status

    def _look_ahead(self) -> None:
        """UserError for what a notebook would stop over, from the first one on that has something to do."""
        pending = list(dropwhile(self._stands, self.chosen))
        if pending:
            from nbutils.pipeline.ahead import problems  # imports pandas: `--explain` doesn't wait for it

            if stops := problems(self.plan, pending):
                raise UserError(" ".join(stops))

    def _stands(self, planned: Planned) -> bool:
        decision = decide(inspect(planned.stage, planned.settings), self.options.policy)
        return decision in (Action.SKIP, Action.KEEP, Action.LEAVE)

    def _stages(self) -> int:
        for number, planned in enumerate(self.chosen, 1):
            if self.supervisor.asked:
                self.sentence = f"Stopped before {planned.stage.name}; run the same command again to go on."
                return 128 + self.supervisor.asked
            status = self._stage(planned, number)
            if status is not None:
                return status
        return 0

    def _stage(self, planned: Planned, number: int) -> int | None:
        """Skips or executes one stage; an exit status where the run ends with it."""
        check_upstream(planned.stage, planned.settings, self.options.allow_paused)
        state = inspect(planned.stage, planned.settings)
        decision = decide(state, self.options.policy)
        self._report_libraries(state, decision)
        self._prepare(state, decision)
        if decision in (Action.SKIP, Action.KEEP) and state.state is State.DONE:
            self._row(planned, "skipped")
            return None
        if decision in (Action.KEEP, Action.LEAVE):
            self._row(planned, State.PAUSED)
            self.sentence = self._paused_words(planned)
            return None
        return self._run_notebook(
            planned, "again, as asked" if decision.clears and not state.stale else state.reason, number
        )

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

    def _run_notebook(self, planned: Planned, reason: str, number: int) -> int | None:
        stage, source, started = planned.stage, notebook_path(planned.stage), time.time()
        job = Job(
            source,
            self.plan.run / "notebooks" / source.name,
            planned.injected,
            self.supervisor,
            self.display,
            self.options,
        )
        error: StageFailed | None = None
        self.display.say(f"[{number}/{len(self.chosen)}] {stage.name}: {source.name} — {reason}")
        with self.supervisor.stage(stage.pausable):
            try:
                self._execute(job)
            except StageFailed as raised:
                error = raised
        self.display.flush()
        status = self._state_since(stage.name, started)
        if status in (State.DONE, State.PAUSED):
            if error and not self.supervisor.asked:
                self.display.say(f"{stage.name} is {status}, but after stage.finish() {error}")
            self._row(planned, status, time.time() - started)
            return self._paused(planned) if status is State.PAUSED else None
        if self.supervisor.asked and (error is None or error.interrupted):
            sentence = self._stopped(planned)
        else:
            unfinished = (
                f"{source.name} ran to its end without finishing its stage: its last cell must call stage.finish()."
            )
            sentence = str(error or unfinished)
        return self._failed(planned, sentence, time.time() - started, job.target)

    def _state_since(self, name: str, started: float) -> State:
        """The stage's state where its record was written by this run; papermill's own word is not enough."""
        record = self.folder.record(name)
        fresh = record is not None and datetime.fromisoformat(record["started"]).timestamp() >= started
        return State(record["status"]) if record is not None and fresh else State.ABSENT

    def _paused(self, planned: Planned) -> int | None:
        self.sentence = self._paused_words(planned)
        if self.options.allow_paused and not self.supervisor.asked:
            return None
        later = [p.stage.name for p in self.chosen[self.chosen.index(planned) + 1 :]]
        if later:
            self.sentence += f" {', '.join(later)} wait (--allow-paused runs them on the newest checkpoint)."
        return 0

    def _paused_words(self, planned: Planned) -> str:
        record = self.folder.record(planned.stage.name) or {}
        how = record.get("facts", {}).get("how_to_continue") or "run the same command again to go on"
        if self.options.allow_paused:
            how = "run again without --allow-paused to go on with it"
        return f"{planned.stage.name} is paused{progress_words(record)}: {how.rstrip('.')}."

    def _stopped(self, planned: Planned) -> str:
        assert self.supervisor.asked is not None
        early = " before it had saved a checkpoint" if planned.stage.pausable and self.supervisor.ended else ""
        how = "ended" if early else "stopped"
        return (
            f"{planned.stage.name} was {how} by {self.supervisor.asked.name}{early}; "
            "run the same command again to go on from this stage."
        )

    def _failed(self, planned: Planned, sentence: str, seconds: float, notebook: Path) -> int:
        self._row(planned, State.FAILED, seconds)
        record = self.folder.record(planned.stage.name)
        if record and record["status"] == State.RUNNING:
            record |= {"status": State.FAILED, "error": sentence, "seconds": round(seconds, 1)}
            record["work_seconds"] = round(record.get("work_seconds", 0.0) + seconds, 1)
            with suppress(OSError):  # on a full disk it stays one that was interrupted
                write_record(self.folder.folder(planned.stage.name) / RECORD, record)
        partial = f" What ran so far is in {shown(notebook)}." if notebook.is_file() else ""
        self.sentence = f"{sentence}{partial}"
        return 128 + self.supervisor.asked if self.supervisor.asked else 1

    def _row(self, planned: Planned, status: str, seconds: float | None = None) -> None:
        """A row of the final table; what the stage made, in the words of its own record."""
        name = planned.stage.name
        record = self.folder.record(name) or {}
        made = record.get("facts", {}).get("made", "") if status != NOT_RUN else ""
        self.rows[name] = Row(name, status, "–" if seconds is None else f"{seconds:.1f}", made)

    def _table(self) -> None:
        """The final table: a row for each stage of the plan, executed or not."""
        for planned in self.plan.stages:
            if planned.stage.name not in self.rows:
                state = State.ABSENT if planned in self.chosen else self.folder.state(planned.stage.name)
                self._row(planned, {State.DONE: "kept", State.ABSENT: NOT_RUN}.get(state, str(state)))
        self.display.table([self.rows[planned.stage.name] for planned in self.plan.stages])

    def _last_words(self) -> None:
        if self.sentence:
            if self.options.again:
                self.sentence += f" Leave out {self.options.again} then: with it the stage starts again."
            self.display.say(self.sentence)
        elif any(self.rows[planned.stage.name].status != "skipped" for planned in self.chosen):
            return
        elif self.options.only:
            self.display.say(f"{self.options.only} is done already; --force runs it again.")
        else:
            self.display.say(f"Nothing to do: all {len(self.chosen)} stages in {shown(self.plan.run)} are done.")

    def _report_libraries(self, state: StageState, decision: Action) -> None:
        if not decision.clears and (differing := state.library_changes):
            self.display.say(f"{state.spec.name} was made with {differing}; nothing is rerun for that.")

    def _warn_of_stale_upstream(self) -> None:
        names = {name for planned in self.chosen for name in planned.stage.reads} - {p.stage.name for p in self.chosen}
        for planned in self.plan.stages:
            if planned.stage.name in names and (state := inspect(planned.stage, planned.settings)).stale:
                self.display.say(f"Warning: {state.spec.name} is used as it is, but {state.reason}.")


def _execute(job: Job) -> None:
    """The engine, imported when the first notebook has to run: a run in which nothing happens doesn't wait for it."""
    from nbutils.pipeline import engine

    engine.execute(job)
