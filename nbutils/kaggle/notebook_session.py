"""A bundled notebook's session behind its first cell: what it continues (`resume`), and its end (`close`)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from IPython import get_ipython

from nbutils.core.errors import UserError
from nbutils.core.files import append_jsonl, kaggle_root, read_json, read_jsonl, resolve, write_json
from nbutils.core.notebooks import notebook_path, parameters
from nbutils.core.run.decide import inspect, progress_words
from nbutils.core.run.key import UPSTREAM, key_parts
from nbutils.core.run.layout import Run, holds_model
from nbutils.core.run.record import RECORD, SCHEMA, read_record, versions, write_record
from nbutils.core.run.state import State
from nbutils.core.stages import maker, spec, stages
from nbutils.core.torchrun import STARTED
from nbutils.core.training_log import LOG as LOG_OF_TRAINING
from nbutils.kaggle.bundle import BUDGET_MINUTES
from nbutils.kaggle.carry_over import (
    ACCEPT,
    LIMIT,
    LOG,
    NOTE,
    Earlier,
    best,
    bring,
    continues,
    keep_under,
    run_folders,
    used,
)
from nbutils.kaggle.guard import RED, Guard
from nbutils.kaggle.mirror import Mirror
from nbutils.kaggle.packages import WHOLE
from nbutils.kaggle.start import Bundle, Environment
from nbutils.pipeline.parameters import settings_of
from nbutils.train.forecast import TUNED, takes

TRAINING = maker("model").name
LONG = maker("scores").name
"""The stage that has no time budget of its own, and is not begun with little of the session left."""
LEAST_LEFT = 0.4
"""Share of `budget_minutes` that has to be left for it."""
WARM_UP = 3
"""First rows of a session that say little about its speed."""


@dataclass
class Session:
    """One session of one bundled notebook. `waits` says why it ended before its last stage was begun."""

    bundle: Bundle
    environment: Environment
    continued: Earlier | None = None
    mirror: Mirror | None = None
    waits: str = ""

    def __post_init__(self) -> None:
        self.run = Run(Path())
        self.names: Mapping[str, Any] = {}
        self.stage = self.bundle.stage
        self.stages = [each.name for each in stages()] if self.stage == WHOLE else [self.stage]
        self.trains = TRAINING in self.stages
        if self.bundle.checkpoint_mirror and self.environment.internet:
            self.mirror = Mirror(self.bundle.checkpoint_mirror, self.bundle.mirror_minutes)

    def resume(self, names: Mapping[str, Any]) -> None:
        """Brings what earlier sessions and notebooks made, and passes over a stage that is finished already."""
        self.run, self.names = Run(resolve(str(names["run_dir"]))), names
        if self.environment.root is None:
            return
        self.bring_earlier()
        self._log_session()
        guard = Guard(get_ipython(), self.keep_output)
        if self.stage != WHOLE and self._is_done(self.stage):
            print(f"{self.stage} is finished already; the cells below are passed over, and its output is handed on.")
            self.close()
            guard.skipping = True
        elif self.mirror is not None:
            self.mirror.start(self.run.path)

    def run_all(self, names: Mapping[str, Any]) -> None:
        """Runs the pipeline with the parameters of this notebook; UserError with its last sentence if it fails.

        It stops before the long stage that follows training where Kaggle might end the session in the midst of it:
        then nothing of the training would be published. A session that only hands a finished training on goes ahead.
        """
        self.waits = ""
        profile = self.run.path.parent / f"{self.bundle.profile}.yaml"
        known = {name for stage in stages() for name in parameters(notebook_path(stage))}
        write_json(profile, {name: names[name] for name in sorted(known & names.keys())})  # JSON is YAML
        options = [f"--{self.bundle.stale}"] if self.bundle.stale else []
        _nbutils("run", str(profile), *options, "--until", self.stages[self.stages.index(LONG) - 1])
        if self.run.state(TRAINING) is not State.DONE:
            return
        trained = self.continued is None or not self.continued.done
        if trained and not self._is_done(LONG):
            self.waits = too_late(float(names.get("budget_minutes") or 0))
        if not self.waits:
            _nbutils("run", str(profile), *options)
            if self.bundle.tune_minutes:
                self._try(_nbutils, "tune", str(profile), "--minutes", str(self.bundle.tune_minutes))

    def close(self) -> None:
        """Says how to continue, keeps the output below Kaggle's limit, and notes how the session ended."""
        if self.environment.root is None:
            return
        self._tidy()
        waits = self.waits
        if self.trains and self.run.state(TRAINING) is State.PAUSED:
            waits = f"Training is paused{progress_words(self.run.record(TRAINING))}."
        if waits:
            print(f"{waits} {self.how_to_continue}")
        done = all(self.run.state(name) is State.DONE for name in self.stages)
        self._note_end(State.PAUSED if waits else State.DONE if done else State.RUNNING)
        if self.trains and (expected := forecast(self.run)):
            print(expected)
        print(f"The output is {used(kaggle_root() / 'working') / 1e9:.2f} GB of {LIMIT / 1e9:.0f} GB.")

    def _tidy(self, flush: bool = False) -> None:
        """Ends the mirror, where asked with one last checkpoint, and drops what the output has no room for."""
        if self.mirror is not None:
            self.mirror.stop(self.run.path if flush else None)
        for run in self.runs():
            for name in keep_under(kaggle_root() / "working", run):
                print(f"Dropped {name}: the output was larger than {LIMIT / 1e9:.0f} GB.")

    def runs(self) -> list[Run]:
        """The runs that it works on; the checkpoints of the first go first where the output has no room."""
        return [self.run]

    @property
    def how_to_continue(self) -> str:
        """What a person does after a pause or a failure."""
        return (
            f"To continue: attach this notebook's own output (Add Input → Your Work → {self.bundle.slug}) "
            "where it is not among its inputs yet, and Save Version → Save & Run All once more; `python -m nbutils "
            "kaggle push` does both."
        )

    def _is_done(self, name: str) -> bool:
        """Whether a stage is finished, with these settings, this code and what it reads as it is here."""
        return inspect(spec(name), settings_of(spec(name), self.names)).fits

    def _note_end(self, status: State, error: str = "") -> None:
        """Notes how the session ended, and when; `running` is one that finished nothing."""
        note = {"schema": SCHEMA, "status": status, "error": error, "time": datetime.now(UTC).isoformat()}
        write_record(self.run.path / NOTE, note)

    # ---- what came before ----

    def bring_earlier(self) -> None:
        """Copies what earlier sessions and notebooks made into the run folder."""
        runs = run_folders(kaggle_root() / "input", self.run.path.name)
        upstream = [name for name in self.bundle.reads if name != self.stage]
        for name in [*upstream, *self.stages]:
            if (self.run.folder(name) / RECORD).is_file():
                continue  # the first cells are executed a second time
            if name in upstream:
                if found := best(runs, name, {}):
                    bring(found, self.run, own=False)
                continue
            settings = settings_of(spec(name), self.names)
            asked = key_parts(spec(name), settings)
            if self.stage == WHOLE:
                del asked[UPSTREAM]  # earlier stages may still change
            found = best(runs, name, asked)
            if name == TRAINING and self.mirror and not (found and found.done and found.fits):
                step = found.step if found and (found.fits or self.bundle.stale == ACCEPT) else 0
                if further := self.mirror.fetch(self.run.path.name, step):
                    found = best([*runs, *run_folders(further, self.run.path.name)], name, asked)
            if found is not None:
                bring(found, self.run, own=True)
                if not continues(found, inspect(spec(name), settings), self.bundle.stale, self.stage == WHOLE):
                    found = None
            if name == TRAINING and found and (found.done or found.checkpoint):
                self.continued = found
                if not found.done:
                    print(
                        f"Continues the session of {found.record['started']} at step {found.step}; steps that a later "
                        "session took without publishing them are lost and taken again."
                    )
            elif name == TRAINING:
                print(
                    "No checkpoint of an earlier session is attached: training starts at step 0. If a session was "
                    "ended before it could publish anything, its work is lost (`bundle --mirror` keeps a copy "
                    "elsewhere)."
                )

    def _log_session(self) -> None:
        self.run.path.mkdir(parents=True, exist_ok=True)
        row = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "stage": self.stage,
            "run_type": self.environment.run_type,
            "gpus": [gpu.name for gpu in self.environment.gpus],
            "internet": self.environment.internet,
            "continues": str(self.continued.folder) if self.continued else None,
            "step": self.continued.step if self.continued else 0,
            "versions": versions(),
        }
        append_jsonl(self.run.path / LOG, row)

    # ---- failures ----

    def keep_output(self, error: BaseException) -> bool:
        """Notes that the session failed; True where there is work to be kept, so that the version has to complete."""
        edited = self.environment.run_type == "Interactive"  # who sits there mends the cell and runs it again
        if edited or not self.trains or not (self.run.newest_sealed() or holds_model(self.run.final)):
            return False
        self._try(self._tidy, True)
        for name in self.stages:
            self._try(self._mark_failed, name, error)
        self._try(self._note_end, State.FAILED, str(error))
        print(RED.format("This session failed; what it made so far is kept as its output."), flush=True)
        print(self.how_to_continue)
        return True

    def _mark_failed(self, name: str, error: BaseException) -> None:
        record = self.run.record(name)
        if record and record["status"] != State.DONE:
            write_record(self.run.folder(name) / RECORD, record | {"status": State.FAILED, "error": str(error)})

    def _try(self, function: Callable[..., None], *arguments: Any) -> None:
        """Does what may fail on a full disk or a damaged record: neither may cost the version its output."""
        try:
            function(*arguments)
        except (OSError, UserError) as error:
            print(f"Note: this could not be done ({error}).")


def _nbutils(*arguments: str) -> None:
    """Runs a command; UserError with its last sentence if it fails."""
    command = [sys.executable, "-m", "nbutils", *arguments]
    last = ""
    # ipykernel 7 asks all programs for colours, which makes redrawn bars of what is a log here.
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "CLICOLOR_FORCE")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line.strip() or last
    if process.returncode:
        raise UserError(f"`nbutils {arguments[0]}` ended with status {process.returncode}: {last}")


def too_late(budget_minutes: float) -> str:
    """Why LONG waits for the next session, or '' where there is time enough (or no budget)."""
    if not budget_minutes or STARTED not in os.environ:
        return ""
    left = 1 - (time.time() - float(os.environ[STARTED])) / (60 * budget_minutes)
    if left >= LEAST_LEFT:
        return ""
    return f"{LONG} waits for the next session: {max(0.0, left):.0%} of budget_minutes ({budget_minutes:g}) is left."


def forecast(run: Run) -> str:
    """What all passes over all of the data take at the speed of this run, and at that of the fastest settings.

    '' where there are too few rows to tell. Datasets that were read in part are counted in full: their tokens are
    scaled by rows in the source over rows read. How often and how much the full run evaluates is not known here:
    evaluations are named and not counted.
    """
    try:
        rows, summary = read_jsonl(run.training / LOG_OF_TRAINING), read_json(run.rows / "summary.json")
        settings = read_json(run.training / "settings.json")["settings"]
    except FileNotFoundError:
        return ""
    speeds = [row["tokens_per_second"] for row in rows if row.get("kind") == "train"]
    if not speeds:
        return ""
    speed = median(speeds[WARM_UP:] or speeds[-1:])
    sources = summary["datasets"]
    there = sum(source["rows_in_source"] for source in sources)
    scale = there / sum(source["rows"] for source in sources)
    tokens = summary["train"]["tokens"] * scale * settings["epochs"]
    said = (
        f"At {speed:,.0f} tokens a second, the training steps of the full run ({tokens / 1e6:,.1f} million tokens) "
        f"take {takes(tokens, speed, BUDGET_MINUTES, True)}."
    )
    tuned = read_record(run.path / TUNED)
    if tuned and tuned["fastest"]["values"]:
        speed = tuned["fastest"]["tokens_per_second"]
        words = takes(tokens, speed, BUDGET_MINUTES, True)
        said += f" With the fastest settings ({tuned['fastest']['setting']}), at {speed:,.0f}: {words}."
    return f"{said} Evaluations on the way and notebook 04 come on top."
