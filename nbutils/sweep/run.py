"""Running a sweep: each trial is a run of the pipeline in a process of its own, on rows that are made once."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from nbutils.core.files import Json, link_tree, replaced, shown
from nbutils.core.hardware import usable_gpus, visible_gpus
from nbutils.core.run.decide import StageState, inspect
from nbutils.core.run.layout import Run
from nbutils.core.run.record import RUN_RECORD, read_record, write_record
from nbutils.core.run.stage import locked
from nbutils.core.stages import maker
from nbutils.core.text import counted, duration
from nbutils.core.torchrun import STARTED
from nbutils.pipeline.supervise import child_environment, taking
from nbutils.sweep.answer import Answer, answer
from nbutils.sweep.plan import Sweep, TrialPlan, known

Start = Callable[[Sequence[str], Mapping[str, str]], "subprocess.Popen[str]"]
"""Starts the command line with these arguments and more environment variables; its output is read from `stdout`."""
POLL_SECONDS = 0.2
LINE_SECONDS = 60.0
"""Between two lines of a trial that are shown."""
NOT_PASSED_ON = ("FORCE_COLOR", "CLICOLOR_FORCE", STARTED)
"""Environment variables: by two of them ipykernel asks for colours, and a trial's time begins with itself."""


def start(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """A process that ends with this one, and in a session of its own: a Ctrl-C in the terminal is for the sweep."""
    code = (
        f"from nbutils.core.torchrun import end_with; end_with({os.getpid()})\n"
        "from nbutils.cli import main; raise SystemExit(main())"
    )
    given = {name: value for name, value in child_environment(**environment).items() if name not in NOT_PASSED_ON}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=given, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace", start_new_session=True,
    )  # fmt: skip


def devices() -> list[str]:
    """The usable CUDA devices by the names that CUDA_VISIBLE_DEVICES knows them by."""
    gpus = visible_gpus()
    given = list(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "").split(",")))
    usable = usable_gpus(gpus)
    return [name for name, gpu in zip(given or map(str, range(len(gpus))), gpus, strict=False) if gpu in usable]


# ---- the processes


class Job:
    """A pipeline at work in a run folder; `last` is the last line that it has printed."""

    def __init__(self, label: str, process: subprocess.Popen[str], say: Callable[[str], None], device: str) -> None:
        self.label, self.process, self.device, self.last = label, process, device, ""
        self._say, self._said = say, time.monotonic()
        self._reader = threading.Thread(target=self._read, daemon=True, name="trial-output")
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.last = line.strip().removeprefix("python -m nbutils: ") or self.last
            if "step " in line and time.monotonic() > self._said + LINE_SECONDS:
                self._said = time.monotonic()
                self._say(f"{self.label}: {self.last.lstrip('│ ')}")

    def ended(self) -> bool:
        """Whether it has ended; all of its output is read then."""
        if self.process.poll() is None:
            return False
        self._reader.join(timeout=5)
        return True

    def stop(self) -> None:
        """Asks it to pause; asked a second time it ends its stage at once."""
        with suppress(ProcessLookupError):
            self.process.terminate()


@dataclass
class Sweeper:
    """One call of a sweep: its trials on the CPU or a GPU one after the other, on several GPUs one on each.

    `failed` has the sentence of every trial that failed in this call.
    """

    sweep: Sweep
    say: Callable[[str], None] = print
    gpus: Sequence[str] = field(default_factory=devices)
    start: Start = start

    def __post_init__(self) -> None:
        self.failed: dict[str, str] = {}
        began = float(os.environ.get(STARTED) or time.time())  # a Kaggle session counts from its own start
        self._ends = began + 60 * self.sweep.minutes if self.sweep.minutes else math.inf
        self._jobs: dict[Job, TrialPlan | None] = {}
        self._asked = self._told = 0  # how often to stop

    # ---- what is left ----

    def left(self) -> list[TrialPlan]:
        """The trials that are neither done nor failed."""
        return [trial for trial in self.sweep.trials if trial.name not in self.failed and not trial.training.fits]

    def explain(self) -> None:
        """Says what would run, and, after the first trial, for how long."""
        self.sweep.check_folder()
        rows = ((shown(folder), self._rows(trial)) for folder, trial in self.sweep.rows.items())
        for label, state in (*rows, *((trial.label, trial.training) for trial in self.sweep.trials)):
            self.say(f"{label}: {'done' if state.fits else f'run ({state.reason})'}")
        self.say(self.forecast() or "Nothing is left to run.")

    def forecast(self) -> str:
        """How much is left, and about how long it takes."""
        left, beside = self.left(), max(1, len(self.gpus))
        words = f"{len(left)} of {counted(len(self.sweep.trials), 'trial')} left"
        known = [trial.training.seconds for trial in self.sweep.trials if trial.training.fits]
        if not left:
            return ""
        if not known:
            return f"{words}; how long they take is known after the first."
        each = statistics.median(known)
        at_once = f", {beside} at a time" if beside > 1 else ""
        return f"{words}, about {duration(each * math.ceil(len(left) / beside))} at {duration(each)} each{at_once}."

    def _rows(self, trial: TrialPlan) -> StageState:
        """The state of the rows that a trial reads, in the folder where they are made."""
        planned = trial.plan.maker("rows")
        return inspect(planned.stage, planned.settings.model_copy(update={"run_dir": str(trial.rows)}))

    # ---- running ----

    def go(self) -> Answer:
        """Runs what is left, to its end or until it is stopped; the answer, which is written after each candidate too.

        A signal, and the end of the time, pause the trials at work with a checkpoint; a second signal ends them now.
        UserError where another sweep is at work in the folder, and for what its stages would stop over.
        """
        self.sweep.check_folder()
        if self.left():
            self.sweep.check_ahead()
        with locked(self.sweep.out):
            self.sweep.write()
            with taking(self._take):
                try:
                    for trial in self.sweep.rows.values():
                        if not self._asked and not self._rows(trial).fits:
                            self._make_rows(trial)
                    self._train()
                finally:
                    for job in self._jobs:
                        job.process.kill()
            found = answer(self.sweep, self.failed)
            found.write()
            found.take()
            if self.sweep.guard and not self._asked and not found.left:
                found = found.guarded(self.say)
                found.write()
        return found

    def _make_rows(self, trial: TrialPlan) -> None:
        sharing = [each.name for each in self.sweep.trials if each.rows == trial.rows]
        self.say(f"Making the rows of {counted(len(sharing), 'trial')} in {shown(trial.rows)}.")
        own = {name: value for name, value in trial.values.items() if name in trial.plan.maker("rows").injected}
        job = self._begin(trial.rows.name, own, trial.rows, "rows", "")
        self._jobs[job] = None
        while not job.ended():
            self._look()
        del self._jobs[job]
        if not self._rows(trial).fits and not self._asked:
            self.failed |= dict.fromkeys(sharing, job.last)
            self.say(f"They cannot be made: {job.last}")

    def _train(self) -> None:
        """Runs the trials in their order, as many at a time as there are devices."""
        waiting, free = self.left(), list(self.gpus) if len(self.gpus) > 1 else [""]
        while self._jobs or (waiting and not self._asked):
            while waiting and free and not self._asked:
                trial = waiting.pop(0)
                device, where = free.pop(0), f"[{self.sweep.trials.index(trial) + 1}/{len(self.sweep.trials)}]"
                self.say(f"{where} {trial.label}{f' on GPU {device}' * bool(device)}: {trial.training.reason}")
                link_rows(trial)
                own = trial.values | {"seed": trial.seed}
                self._jobs[self._begin(trial.label, own, trial.run.path, "model", device)] = trial
            self._look()
            for job in [job for job in self._jobs if job.ended()]:
                if ended := self._jobs.pop(job):
                    self._note_end(ended, job)
                free.append(job.device)

    def _begin(self, label: str, values: Json, folder: Path, role: str, device: str) -> Job:
        """Starts the pipeline on a run folder, up to the stage of that role."""
        own = values | (known({"processes": 1}) if device else {})
        options = [word for name, value in own.items() for word in ("-p", f"{name}={json.dumps(value)}")]
        line = ["run", str(self.sweep.profile), *options, "--run-dir", str(folder), "--until", maker(role).name]
        return Job(label, self.start(line, {"CUDA_VISIBLE_DEVICES": device} if device else {}), self.say, device)

    def _note_end(self, trial: TrialPlan, job: Job) -> None:
        state = trial.training
        if state.fits:
            self.say(f"{trial.label}: done in {duration(state.seconds)}. {self.forecast()}".rstrip())
            if all(mate.training.fits for mate in self.sweep.trials if mate.values == trial.values):
                found = answer(self.sweep, self.failed)
                found.write()
                if found.verdict:
                    self.say(found.verdict.sentence)
        elif self._asked:
            self.say(f"{trial.label}: {state.reason}")
        else:
            self.failed[trial.name] = job.last
            self.say(f"{trial.label} failed: {job.last}")

    def _look(self) -> None:
        """Waits a moment, and passes on that somebody, or the end of the time, wants it to stop."""
        time.sleep(POLL_SECONDS)
        if not self._asked and time.time() > self._ends:
            self._asked = 1
        if self._told < self._asked:
            self._told = self._asked
            self.say("Pausing." if self._asked == 1 else "Ending what is at work.")
            for job in self._jobs:
                job.stop()

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._asked += 1


def link_rows(trial: TrialPlan) -> None:
    """Gives a trial its rows and their record, as hard links where the disk has them."""
    planned = trial.plan.maker("rows")
    if not inspect(planned.stage, planned.settings).fits:
        with replaced(trial.run.rows) as partial:
            link_tree(Run(trial.rows).rows, partial)
    if not (trial.run.path / RUN_RECORD).is_file():
        record = read_record(trial.rows / RUN_RECORD) or {}
        write_record(trial.run.path / RUN_RECORD, record | {"name": trial.name})
