"""Runs the notebooks of a profile in order, skips what is done, and never throws work away."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.core.notebooks import code_cells, notebook_path
from nbutils.core.run import pause
from nbutils.core.run.decide import Action, StageState, carry_out, decide, inspect, progress_words, question
from nbutils.core.run.layout import Run
from nbutils.core.run.record import RECORD, write_record
from nbutils.core.run.stage import check_upstream, locked
from nbutils.core.run.state import State
from nbutils.core.text import size
from nbutils.pipeline.choice import Options, asks_first, chosen
from nbutils.pipeline.display import Display, Row
from nbutils.pipeline.parameters import Plan, Planned
from nbutils.pipeline.supervise import Supervisor, end, run_mark


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
    allow_paused: bool = False
    cell_seconds: float | None = None
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
        self._began = time.monotonic()
        self.chosen = chosen(plan, options)

    def go(self) -> int:
        """Executes what has to be executed; the exit status: 0 done or paused, 1 failed, 128 + n ended by signal n."""
        with locked(self.plan.run), self.supervisor.listening():
            pause.clear(self.plan.run)
            left = end(run_mark(self.plan.run))
            if left:
                self.display.say(f"Ended {left} process(es) that an earlier run had left behind.", "yellow")
            self._warn_of_stale_upstream()
            if first := asks_first(self.chosen, self.options):
                raise question(first)
            try:
                with self.display.run(len(self.chosen)):
                    status = self._stages()
            except UserError as error:
                self._table()
                raise error
            finally:
                pause.clear(self.plan.run)
        self._table()
        self._last_words(status)
        return status

    def _stages(self) -> int:
        for number, planned in enumerate(self.chosen, 1):
            if self.supervisor.asked:
                self.sentence = f"Stopped before {planned.stage.name}; run the same command again to go on."
                return 128 + self.supervisor.asked
            status = self._stage(planned, number)
            if status is not None:
                return status
            self.display.stage_over()
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
            place = carry_out(decision, state)
        except OSError as error:
            where = shown(str(error.filename or state.folder))
            raise UserError(
                f"{where} cannot be changed ({error.strerror}): choose another run_dir, or free the disk."
            ) from None
        if place is not None:
            self.display.say(f"{state.spec.name}: set the earlier work aside in {shown(place)}.", "yellow")
        elif decision.accepts:
            self.display.say(f"{state.spec.name}: kept as it is, as --accept asks.", "yellow")

    def _run_notebook(self, planned: Planned, reason: str, number: int) -> int | None:
        stage, source, started = planned.stage, notebook_path(planned.stage), time.time()
        job = Job(
            source,
            self.plan.run / "notebooks" / source.name,
            planned.injected,
            self.supervisor,
            self.display,
            allow_paused=self.options.allow_paused,
            cell_seconds=self.options.cell_minutes and self.options.cell_minutes * 60,
        )
        error: StageFailed | None = None
        cells = len(code_cells(source))
        with (
            self.display.stage(number, len(self.chosen), stage.name, source.name, cells, reason),
            self.supervisor.stage(stage.pausable),
        ):
            try:
                self._execute(job)
            except StageFailed as raised:
                error = raised
        status = self._state_since(stage.name, started)
        if status in (State.DONE, State.PAUSED):
            if error and not self.supervisor.asked:
                self.display.say(f"{stage.name} is {status}, but after stage.finish() {error}", "yellow")
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
        name = self.supervisor.asked.name
        if planned.stage.pausable:
            waited = "before it had saved a checkpoint" if self.supervisor.ended else "instead of pausing"
            return f"{planned.stage.name} was ended by {name} {waited}; run the same command again to go on."
        return f"{planned.stage.name} was stopped by {name}; run the same command again to go on from this stage."

    def _failed(self, planned: Planned, sentence: str, seconds: float, notebook: Path) -> int:
        self._row(
            planned, State.FAILED, seconds, note=f"partial notebook {shown(notebook)}" if notebook.is_file() else ""
        )
        record = self.folder.record(planned.stage.name)
        try:
            if record and record["status"] == State.RUNNING:
                record |= {"status": State.FAILED, "error": sentence, "seconds": round(seconds, 1)}
                record["work_seconds"] = round(record.get("work_seconds", 0.0) + seconds, 1)
                write_record(self.folder.folder(planned.stage.name) / RECORD, record)
        except OSError as error:
            self.display.say(f"{planned.stage.name}/{RECORD} could not be updated ({error.strerror}).", "yellow")
        partial = f" What ran so far stands in {shown(notebook)}." if notebook.is_file() else ""
        self.sentence = f"{sentence}{partial}"
        return 128 + self.supervisor.asked if self.supervisor.asked else 1

    def _row(self, planned: Planned, status: str, seconds: float | None = None, note: str | None = None) -> None:
        name = planned.stage.name
        self.rows[name] = Row(name, status, seconds, self._made(name) if note is None else note)

    def _made(self, name: str) -> str:
        """What a stage made, in a line: its own words, or the count and size of its files."""
        record = self.folder.record(name)
        if record is None or record["status"] not in (State.DONE, State.PAUSED):
            return ""
        if words := record.get("facts", {}).get("made"):
            return str(words)
        outputs = record["outputs"].values()
        amount = size(sum(entry["bytes"] for entry in outputs))
        return f"{len(outputs)} file{'s' if len(outputs) != 1 else ''}, {amount} in {shown(self.folder.folder(name))}"

    def _table(self) -> None:
        """The final table: a row for each stage of the plan, executed or not."""
        for planned in self.plan.stages:
            state = self.folder.state(planned.stage.name)
            if planned.stage.name in self.rows:
                continue
            if planned in self.chosen:
                self._row(planned, "not run", note="")
            else:
                self._row(planned, {State.DONE: "kept", State.ABSENT: "not run"}.get(state, state))
        self.display.table([self.rows[planned.stage.name] for planned in self.plan.stages])

    def _last_words(self, status: int) -> None:
        if self.sentence:
            if self.options.again:
                self.sentence += f" Leave out {self.options.again} then: with it the stage starts again."
            self.display.say(self.sentence, "bold red" if status else "yellow")
        elif any(self.rows[planned.stage.name].status != "skipped" for planned in self.chosen):
            return
        elif self.options.only:
            self.display.say(f"{self.options.only} is done already; --force runs it again.")
        else:
            seconds, run = time.monotonic() - self._began, shown(self.plan.run)
            self.display.say(f"Nothing to do: all {len(self.chosen)} stages in {run} are done ({seconds:.1f} s).")

    def _report_libraries(self, state: StageState, decision: Action) -> None:
        if not decision.clears and (differing := state.library_changes):
            on = (
                "it continues with today's"
                if decision in (Action.RESUME, Action.KEEP_AND_RESUME)
                else "nothing is rerun for that"
            )
            self.display.say(f"{state.spec.name} was made with {differing}; {on}.", "yellow")

    def _warn_of_stale_upstream(self) -> None:
        names = {name for planned in self.chosen for name in planned.stage.reads} - {p.stage.name for p in self.chosen}
        for planned in self.plan.stages:
            if planned.stage.name in names and (state := inspect(planned.stage, planned.settings)).stale:
                self.display.say(f"Warning: {state.spec.name} is used as it is, but {state.reason}.", "yellow")
