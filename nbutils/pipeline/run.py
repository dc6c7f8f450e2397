"""Runs the notebooks of a profile in order, skips what is done, and never throws work away."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from nbutils.core import pause
from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.core.lock import locked
from nbutils.core.notebooks import code_cells, notebook_path
from nbutils.core.record import RECORD, stage_record, write_record
from nbutils.core.stage import check_upstream
from nbutils.core.verdict import Verdict, accept, ask, clear, judge, library_changes, progress_words, set_aside
from nbutils.pipeline.choice import Action, Options, asks_first, chosen, decide
from nbutils.pipeline.display import Display, Row
from nbutils.pipeline.job import Job
from nbutils.pipeline.parameters import Plan, Planned
from nbutils.pipeline.processes import end, new_mark, oom_kills, run_mark
from nbutils.pipeline.signals import Signals
from nbutils.pipeline.table import all_rows, made

Execute = Callable[[Job], None]


class Run:
    """One call of the pipeline on one run folder."""

    def __init__(self, plan: Plan, options: Options, display: Display, execute: Execute) -> None:
        self.plan = plan
        self.options = options
        self.display = display
        self.signals = Signals(display.say)
        self.rows: list[Row] = []
        self.executed = 0
        self.sentence = ""
        self._execute = execute
        self._began = time.monotonic()
        self.chosen = chosen(plan, options)

    def go(self) -> int:
        """Executes what has to be executed; the exit status: 0 done or paused, 1 failed, 128 + n ended by signal n."""
        with locked(self.plan.run), self.signals.listening():
            pause.clear(self.plan.run)
            left = end(run_mark(self.plan.run), patience=5.0)
            if left:
                self.display.say(f"Ended {left} process(es) that an earlier run had left behind.", "yellow")
            self._warn_of_stale_upstream()
            if first := asks_first(self.chosen, self.options):
                raise ask(first[0].stage, first[0].settings, first[1])
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
            if self.signals.asked:
                self.sentence = f"Stopped before {planned.stage.name}; run the same command again to go on."
                return 128 + self.signals.asked
            status = self._stage(planned, number)
            if status is not None:
                return status
            self.display.stage_over()
        return 0

    def _stage(self, planned: Planned, number: int) -> int | None:
        """Skips or executes one stage; an exit status where the run ends with it."""
        check_upstream(planned.stage, planned.settings, self.options.allow_paused)
        verdict = judge(planned.stage, planned.settings)
        action = decide(verdict, self.options)
        if action not in (Action.AGAIN, Action.ASIDE):
            self._report_libraries(planned, verdict, action)
        verdict = self._prepared(planned, verdict, action)
        if verdict.state == "done":
            self._row(planned, "skipped", None)
            return None
        if verdict.state == "paused" and self.options.allow_paused:
            self._row(planned, "paused", None)
            self.sentence = self._paused_words(planned)
            return None
        return self._run_notebook(planned, verdict, number)

    def _prepared(self, planned: Planned, verdict: Verdict, action: Action) -> Verdict:
        """Does to the stage's folder what has been decided; the verdict after. UserError where a person decides."""
        stage, settings = planned.stage, planned.settings
        folder = settings.run_path / stage.name
        try:
            if action is Action.ASK:
                raise ask(stage, settings, verdict)
            if action in (Action.KEEP, Action.KEEP_ON, Action.REFUSE):
                accept(stage, settings, verdict)
                self.display.say(f"{stage.name}: kept as it is, as --accept asks.", "yellow")
                return judge(stage, settings)
            if action is Action.ASIDE:
                place = set_aside(folder)
                self.display.say(f"{stage.name}: set the earlier work aside in {shown(place)}.", "yellow")
                return Verdict("anew", verdict.parts)
            if action is Action.AGAIN and verdict.state != "stale":
                clear(folder)
                return Verdict("anew", verdict.parts)
            return verdict
        except OSError as error:
            where = shown(str(error.filename or folder))
            raise UserError(
                f"{where} cannot be changed ({error.strerror}): choose another run_dir, or free the disk."
            ) from None

    def _run_notebook(self, planned: Planned, verdict: Verdict, number: int) -> int | None:
        self.executed += 1
        stage, started, oom_before = planned.stage, time.time(), oom_kills()
        job = self._job(planned)
        error: Exception | None = None
        cells = len(code_cells(job.source))
        with (
            self.display.stage(number, len(self.chosen), stage.name, job.source.name, cells, verdict.reason),
            self.signals.stage(self.plan.run, job.mark, stage.pausable),
        ):
            try:
                self._execute(job)
            except Exception as raised:
                error = raised
        from nbutils.pipeline import faults

        status = self._status_since(stage.name, started)
        if status in ("done", "paused") and not isinstance(error, OSError):
            if error and not self.signals.asked and not faults.is_pause(error):
                words = faults.sentence(error, job, self.plan.run, oom_before)
                self.display.say(f"{stage.name} is {status}, but after stage.finish() {words}", "yellow")
            self._row(planned, status, time.time() - started)
            return self._paused(planned) if status == "paused" else None
        if self.signals.asked and faults.by_signal(error):
            sentence = self._stopped(planned)
        else:
            sentence = faults.sentence(error, job, self.plan.run, oom_before) if error else faults.early_exit(job)
        return self._failed(planned, sentence, time.time() - started, job.target)

    def _job(self, planned: Planned) -> Job:
        source, pausable = notebook_path(planned.stage), planned.stage.pausable
        return Job(
            source,
            self.plan.run / "notebooks" / source.name,
            planned.injected,
            new_mark(self.plan.run),
            self.display,
            kernel_started=self.signals.kernel_started,
            stop=lambda: self.signals.asked is not None and not pausable,
            allow_paused=self.options.allow_paused,
            cell_seconds=self.options.cell_minutes and self.options.cell_minutes * 60,
        )

    def _status_since(self, name: str, started: float) -> str:
        """The stage's status where its record was written by this run; papermill's own word is not enough."""
        record = stage_record(self.plan.run, name)
        fresh = record is not None and datetime.fromisoformat(record["started"]).timestamp() >= started
        return str(record["status"]) if record is not None and fresh else "absent"

    def _paused(self, planned: Planned) -> int | None:
        self.sentence = self._paused_words(planned)
        if self.options.allow_paused and not self.signals.asked:
            return None
        later = [p.stage.name for p in self.chosen[self.chosen.index(planned) + 1 :]]
        if later:
            self.sentence += f" {', '.join(later)} wait (--allow-paused runs them on the newest checkpoint)."
        return 0

    def _paused_words(self, planned: Planned) -> str:
        record = stage_record(self.plan.run, planned.stage.name) or {}
        how = record.get("facts", {}).get("how_to_continue") or "run the same command again to go on"
        if self.options.allow_paused:
            how = "run again without --allow-paused to go on with it"
        return f"{planned.stage.name} is paused{progress_words(record)}: {how.rstrip('.')}."

    def _stopped(self, planned: Planned) -> str:
        assert self.signals.asked is not None
        name = self.signals.asked.name
        if planned.stage.pausable:
            waited = "before it had saved a checkpoint" if self.signals.ended else "instead of pausing"
            return f"{planned.stage.name} was ended by {name} {waited}; run the same command again to go on."
        return f"{planned.stage.name} was stopped by {name}; run the same command again to go on from this stage."

    def _failed(self, planned: Planned, sentence: str, seconds: float, notebook: Path) -> int:
        self._row(planned, "failed", seconds, note=f"partial notebook {shown(notebook)}" if notebook.is_file() else "")
        record = stage_record(self.plan.run, planned.stage.name)
        try:
            if record and record["status"] == "running":
                record |= {"status": "failed", "error": sentence, "seconds": round(seconds, 1)}
                record["work_seconds"] = round(record.get("work_seconds", 0.0) + seconds, 1)
                write_record(self.plan.run / planned.stage.name / RECORD, record)
        except OSError as error:
            self.display.say(f"{planned.stage.name}/{RECORD} could not be updated ({error.strerror}).", "yellow")
        partial = f" What ran so far stands in {shown(notebook)}." if notebook.is_file() else ""
        self.sentence = f"{sentence}{partial}"
        return 128 + self.signals.asked if self.signals.asked else 1

    def _row(self, planned: Planned, status: str, seconds: float | None, note: str | None = None) -> None:
        text = note if note is not None else made(self.plan.run, planned.stage.name)
        self.rows.append(Row(planned.stage.name, status, seconds, text))

    def _table(self) -> None:
        self.display.table(all_rows(self.rows, self.plan, self.chosen))

    def _last_words(self, status: int) -> None:
        seconds = time.monotonic() - self._began
        skipped = self.executed == 0 and all(row.status == "skipped" for row in self.rows)
        if self.sentence:
            if self.options.anew:
                self.sentence += f" Leave out {self.options.anew} then: with it the stage begins anew."
            self.display.say(self.sentence, "bold red" if status else "yellow")
        elif skipped and self.options.only:
            self.display.say(f"{self.options.only} is done already; --force runs it again.")
        elif skipped:
            self.display.say(
                f"Nothing to do: all {len(self.rows)} stages in {shown(self.plan.run)} are done ({seconds:.1f} s)."
            )

    def _report_libraries(self, planned: Planned, verdict: Verdict, action: Action) -> None:
        if differing := library_changes(verdict):
            on = "it goes on with today's" if action in (Action.ON, Action.KEEP_ON) else "nothing is rerun for that"
            self.display.say(f"{planned.stage.name} was made with {differing}; {on}.", "yellow")

    def _warn_of_stale_upstream(self) -> None:
        names = {name for planned in self.chosen for name in planned.stage.reads} - {p.stage.name for p in self.chosen}
        for planned in self.plan.stages:
            if planned.stage.name in names:
                verdict = judge(planned.stage, planned.settings)
                if verdict.state == "stale":
                    self.display.say(
                        f"Warning: {planned.stage.name} is used as it stands, but {verdict.reason}.", "yellow"
                    )
