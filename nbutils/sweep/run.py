"""Running a sweep: each trial is a run of the pipeline in a process of its own, on rows that are made once."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nbutils.core.files import link_tree, written
from nbutils.core.hardware import usable_gpus, visible_gpus
from nbutils.core.run.decide import Policy, decide
from nbutils.core.run.stage import locked
from nbutils.core.text import counted, duration
from nbutils.core.torchrun import STARTED
from nbutils.pipeline.supervise import child_environment, taking
from nbutils.sweep.answer import Answer, answer
from nbutils.sweep.settings import PROFILE, Step, Sweep, TrialPlan

POLL_SECONDS = 0.2
LINE_SECONDS = 60.0
"""Between two lines of a trial that are shown."""
EMPTIED = dict.fromkeys(("FORCE_COLOR", "CLICOLOR_FORCE", STARTED), "")
"""Environment variables: by two of them ipykernel asks for colours, and a trial's time begins with itself."""


def start(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """The command line with these arguments and more environment variables, its output in a pipe.

    It ends with this process, and is in a session of its own: a Ctrl-C in the terminal is for the sweep.
    """
    code = (
        f"from nbutils.core.torchrun import end_with; end_with({os.getpid()})\n"
        "from nbutils.cli import main; raise SystemExit(main())"
    )
    given = child_environment(**EMPTIED, **environment)
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=given, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", start_new_session=True,
    )  # fmt: skip


def devices() -> list[str]:
    """The usable CUDA devices by the names that CUDA_VISIBLE_DEVICES knows them by."""
    gpus = visible_gpus()
    given, usable = re.findall(r"[^\s,]+", os.environ.get("CUDA_VISIBLE_DEVICES", "")), usable_gpus(gpus)
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


@dataclass
class Sweeper:
    """One call of a sweep: its trials on the CPU or a GPU one after the other, on several GPUs one on each.

    `options` are more options of each trial's `run`. `failed` has the sentence of every trial that failed in this call,
    by its label.
    """

    sweep: Sweep
    say: Callable[[str], None] = print
    options: Sequence[str] = ()
    gpus: Sequence[str] = field(default_factory=devices)

    def __post_init__(self) -> None:
        """Forgets what an earlier call has found, and whether it was asked to stop: a notebook calls again."""
        self.failed: dict[str, str] = {}
        began = float(os.environ.get(STARTED) or time.time())  # a Kaggle session counts from its own start
        self._ends = began + (60 * self.sweep.minutes or math.inf)
        self._jobs: dict[Job, Step] = {}
        self._asked = self._told = 0  # how often to stop

    # ---- what is left ----

    def left(self) -> list[TrialPlan]:
        """The trials that are neither done nor failed."""
        return [trial for trial in self.sweep.trials if trial.label not in self.failed and not trial.state.fits]

    def explain(self) -> None:
        """Says what would run, and, after the first trial, for how long."""
        self.sweep.check_folder()
        policy = Policy("--accept" in self.options, "--force" in self.options)
        for step in (*(trial.rows for trial in self.sweep.rows.values()), *self.sweep.trials):
            state = step.state
            self.say(f"{step.label}: {'done' if state.fits else f'{decide(state, policy)} ({state.reason})'}")
        self.say(self.forecast() or "Nothing is left to run.")

    def forecast(self) -> str:
        """How much is left, and about how long it takes."""
        left, beside = self.left(), max(1, len(self.gpus))
        if not left:
            return ""
        words = f"{len(left)} of {counted(len(self.sweep.trials), 'trial')} left"
        known = [state.seconds for trial in self.sweep.trials if (state := trial.state).fits]
        if not known:
            return f"{words}; how long they take is known after the first."
        each = statistics.median(known)
        at_once = f", {beside} at a time" if beside > 1 else ""
        return f"{words}, about {duration(each * math.ceil(len(left) / beside))} at {duration(each)} each{at_once}."

    # ---- running ----

    def go(self) -> Answer:
        """Runs what is left, to its end or until it is stopped; the answer, which is written after each candidate too.

        A signal, and the end of the time, pause the trials at work with a checkpoint; a second signal ends them now.
        UserError where another sweep is at work in the folder, where the disk is full, and for what its stages would
        stop over.
        """
        self.__post_init__()
        self.sweep.check_folder()
        if left := self.left():
            self.sweep.check_ahead()
        with locked(self.sweep.out):
            self.sweep.write()
            with taking(self._take):
                try:
                    rows = {trial.rows.run: trial.rows for trial in left}
                    self._run([step for step in rows.values() if not step.state.fits], [""])
                    for trial in left:
                        if trial.rows.state.fits:
                            link_rows(trial)
                    self._run(self.left(), list(self.gpus) if len(self.gpus) > 1 else [""])
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

    def _run(self, steps: Sequence[Step], free: list[str]) -> None:
        """Makes steps in their order, as many at a time as there are devices."""
        waiting = list(steps)
        while self._jobs or (waiting and not self._asked):
            while waiting and free and not self._asked:
                step, device = waiting.pop(0), free.pop(0)
                where = f" on GPU {device} alone" if device else ""
                self.say(f"[{len(steps) - len(waiting)}/{len(steps)}] {step.label}{where}: {step.state.reason}")
                self._jobs[self._begin(step, device)] = step
            self._look()
            for job in [job for job in self._jobs if job.ended()]:
                self._note_end(self._jobs.pop(job), job.last)
                free.append(job.device)

    def _begin(self, step: Step, device: str) -> Job:
        """Starts the pipeline on the step's run folder, up to its stage."""
        options = step.options | ({"processes": 1} if device else {})
        words = [f"-p{name}={json.dumps(value)}" for name, value in options.items()]
        folder, last = str(step.run.path), step.planned.stage.name
        line = ["run", str(self.sweep.out / PROFILE), *words, "--run-dir", folder, "--until", last, *self.options]
        return Job(step.label, start(line, {"CUDA_VISIBLE_DEVICES": device} if device else {}), self.say, device)

    def _note_end(self, step: Step, last: str) -> None:
        state = step.state
        if state.fits:
            self.say(f"{step.label}: done in {duration(state.seconds)}. {self.forecast()}".rstrip())
            if any(step in trials and all(trial.state.fits for trial in trials) for trials in self.sweep.candidates):
                found = answer(self.sweep, self.failed)
                found.write()
                self.say(found.verdict.sentence)
        elif self._asked:
            self.say(f"{step.label}: {state.reason}")
        else:
            self.failed |= {each.label: last for each in self.sweep.trials if step.run in (each.run, each.rows.run)}
            self.say(f"{step.label} failed: {last}")

    def _look(self) -> None:
        """Waits a moment, and passes on that somebody, or the end of the time, wants it to stop."""
        time.sleep(POLL_SECONDS)
        if not self._asked and time.time() > self._ends:
            self._asked = 1
        if self._told < self._asked:
            self._told = self._asked
            self.say("Pausing." if self._asked == 1 else "Ending what is at work.")
            for job in self._jobs:
                job.process.terminate()  # a second time it ends its stage at once

    def _take(self, *_: object) -> None:
        self._asked += 1


def link_rows(trial: TrialPlan) -> None:
    """Gives a trial its rows with their record, as hard links where the disk has them. UserError where it is full."""
    if not trial.linked.fits:
        with written(trial.run.rows) as partial:
            link_tree(trial.rows.run.rows, partial)
