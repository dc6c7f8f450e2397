"""A bundled notebook's session behind its first cell: what it goes on from (`resume`), and its end (`close`)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from IPython import get_ipython

from nbutils.core.errors import UserError
from nbutils.core.files import append_jsonl, resolve, write_json
from nbutils.core.run.key import UPSTREAM, key_parts
from nbutils.core.run.layout import Run, holds_model
from nbutils.core.run.record import RECORD, RUN_RECORD, versions, write_record
from nbutils.core.run.state import State
from nbutils.core.settings import Settings
from nbutils.core.stages import maker, spec, stages
from nbutils.kaggle.carry_over import (
    ACCEPT,
    Earlier,
    best,
    bring,
    changed_versions,
    continues,
    given_parameters,
    is_done,
    run_folders,
    settings_of,
    size,
)
from nbutils.kaggle.environment import LIMIT, WHOLE, Environment, keep_under, used
from nbutils.kaggle.forecast import forecast_of
from nbutils.kaggle.guard import RED, Guard
from nbutils.kaggle.mirror import Mirror
from nbutils.kaggle.start import Bundle, check_attached
from nbutils.kaggle.version import note_end
from nbutils.kaggle.whole import LONG, run_pipeline, too_late
from nbutils.pipeline.fetch import wanted_by

TRAINING = maker("model").name
LOG = "kaggle.jsonl"
"""In the run folder: a row for each session, with its kind, its GPUs, its libraries and what it went on from."""


class Session:
    """One session of one bundled notebook."""

    def __init__(self, bundle: Bundle, environment: Environment) -> None:
        self.bundle = bundle
        self.stage = bundle.stage
        self.environment = environment
        self.waits = ""
        self.run = Path()
        self.continued: Earlier | None = None
        self.mirror: Mirror | None = None
        if bundle.checkpoint_mirror and environment.root is not None and environment.internet:
            self.mirror = Mirror(bundle.checkpoint_mirror, bundle.mirror_minutes)
        self.guard = Guard(get_ipython(), editor=environment.run_type == "Interactive")

    def resume(self, names: Mapping[str, Any]) -> None:
        """Brings what earlier sessions and notebooks made, and passes over a stage that is finished already."""
        self.run = resolve(str(names["run_dir"]))
        if self.environment.root is None:
            return
        if not self.environment.internet:
            wanted = wanted_by({name: settings_of(name, names) for name in self._own_stages()})
            check_attached(
                [(item.kind, item.name, item.revision, item.purpose) for item in wanted], [], self.bundle.recipe
            )
        self.bring_earlier(names)
        self._note_session()
        self.guard.watch(self.keep_output)
        if self.stage != WHOLE and is_done(self.stage, names):
            print(f"{self.stage} is finished already; the cells below are passed over, and its output is handed on.")
            self.close()
            self.guard.pass_over()
        elif self.mirror is not None and self.environment.internet:
            self.mirror.start(self.run)

    def run_all(self, names: Mapping[str, Any]) -> None:
        """Runs the pipeline with the parameters of this notebook; UserError with its last sentence if it fails.

        It stops before the long stage that follows training where Kaggle might end the session in the midst of it:
        then nothing of the training would be published. A session that only hands a finished training on goes ahead.
        """
        self.waits = ""
        profile = self.run.parent / f"{self.bundle.profile}.yaml"
        write_json(profile, dict(given_parameters(names)))  # JSON is YAML
        run_pipeline(profile, self.bundle.stale, short=True)
        if Run(self.run).state(TRAINING) is not State.DONE:
            return
        trained = self.continued is None or not self.continued.done
        if trained and self.environment.root is not None and not is_done(LONG, names):
            self.waits = too_late(float(names.get("budget_minutes") or 0))
        if not self.waits:
            run_pipeline(profile, self.bundle.stale)

    def close(self) -> None:
        """Says how to go on, keeps the output below Kaggle's limit, and notes how the session ended."""
        if self.environment.root is None:
            return
        working = self.environment.root / "working"
        self._tidy(working)
        record = Run(self.run).record(TRAINING) if self.trains else None
        paused = bool(record and record["status"] == State.PAUSED)
        if record and paused:
            print(f"{_at(record)} {self.how_to_go_on}")
        elif self.waits:
            print(f"{self.waits} {self.how_to_go_on}")
        done = all(Run(self.run).state(name) is State.DONE for name in self._own_stages())
        note_end(self.run, self.stage, State.PAUSED if paused or self.waits else State.DONE if done else State.RUNNING)
        expected = forecast_of(self.run) if self.trains else None
        if expected is not None:
            print(expected.sentence)
        print(f"The output is {used(working) / 1e9:.2f} GB of {LIMIT / 1e9:.0f} GB.")

    def _tidy(self, working: Path, flush: bool = False) -> None:
        """Ends the mirror, where asked with one last checkpoint, and drops what the output has no room for."""
        if self.mirror is not None:
            self.mirror.stop(self.run if flush else None)
        for name in keep_under(working, self.run):
            print(f"Dropped {name}: the output was larger than {LIMIT / 1e9:.0f} GB.")

    @property
    def how_to_go_on(self) -> str:
        """What a person does after a pause or a failure."""
        own = self.bundle.address.partition("/")[2]
        return (
            f"To go on: attach this notebook's own output (Add Input → Your Work → {own}) "
            "where it is not among its inputs yet, and Save Version → Save & Run All once more; `python -m nbutils "
            "kaggle push` does both."
        )

    @property
    def trains(self) -> bool:
        """Whether this notebook trains a model."""
        return self.stage in (TRAINING, WHOLE)

    def _own_stages(self) -> list[str]:
        return [s.name for s in stages()] if self.stage == WHOLE else [self.stage]

    # ---- what came before ----

    def bring_earlier(self, names: Mapping[str, Any]) -> None:
        """Copies what earlier sessions and notebooks made into the run folder."""
        assert self.environment.root is not None
        runs = run_folders(self.environment.root / "input", self.run.name)
        upstream = [] if self.stage == WHOLE else [*spec(self.stage).reads, *spec(self.stage).consults]
        for name in [*upstream, *self._own_stages()]:
            if (self.run / name / RECORD).is_file():
                continue  # the first cells are executed a second time
            own = name == self.stage or self.stage == WHOLE
            settings = settings_of(name, names) if own else None
            asked = self._asked(name, settings) if settings else None
            earlier, remarks = best(runs, name, asked)
            if name == TRAINING and own and not (earlier and earlier.done and earlier.fits):
                runs += self.from_mirror(earlier if earlier and (earlier.fits or self.bundle.stale == ACCEPT) else None)
                earlier, remarks = best(runs, name, asked)
            for remark in remarks:
                print(f"Note: {remark}.")
            kept = earlier
            if earlier is not None:
                self._copy(name, earlier, own)
                if settings and not continues(earlier, name, settings, self.bundle.stale, self.stage == WHOLE):
                    kept = None
            if name == TRAINING and own:
                self._say_what_continues(kept)

    def _asked(self, name: str, settings: Settings) -> dict[str, Any]:
        """The parts of the key that work to go on from has to have; in a pipeline earlier stages may still change."""
        parts = key_parts(spec(name), settings)
        return {part: value for part, value in parts.items() if part != UPSTREAM or self.stage != WHOLE}

    def from_mirror(self, earlier: Earlier | None) -> list[Path]:
        """The run folder that the mirror holds, where it is further than what is attached.

        UserError where it can't be read and nothing is attached: training would start at step 0, and replace it.
        """
        if self.mirror is None or not self.environment.internet:
            return []
        folder, step = Path(tempfile.mkdtemp(prefix="smallchat-mirror-")), earlier.step if earlier else 0
        try:
            if not self.mirror.fetch(self.run.name, step, folder):
                return []
        except UserError as error:
            if not step:
                raise
            self.mirror = None  # what it holds may be further, and sending would replace it for good
            print(f"Note: {error} This session continues from step {step}, which is attached, and sends nothing there.")
            return []
        print(f"The mirror {self.mirror.repo} is further than what is attached.")
        return run_folders(folder, self.run.name)

    def _copy(self, name: str, earlier: Earlier, own: bool) -> None:
        assert self.environment.root is not None
        needed, there = size(earlier, own), used(self.environment.root / "working")
        if there + needed > LIMIT:
            raise UserError(
                f"{earlier.folder} has {needed / 1e9:.1f} GB beside {there / 1e9:.1f} GB that are here, more than the "
                f"{LIMIT / 1e9:.0f} GB that Kaggle keeps: remove what else lies in the working folder, or take a "
                "smaller base model."
            )
        bring(earlier, self.run / name, with_checkpoint=own and not earlier.done)
        for file in (RUN_RECORD, LOG) if own else (RUN_RECORD,):
            source = earlier.folder.parent / file
            if source.is_file() and not (self.run / file).is_file():
                shutil.copyfile(source, self.run / file)
        print(f"{name}: taken from {earlier.folder} ({needed / 1e6:,.1f} MB)")

    def _say_what_continues(self, earlier: Earlier | None) -> None:
        if earlier is None or (not earlier.done and earlier.checkpoint is None):
            print(
                "No checkpoint of an earlier session is attached: training starts at step 0. If a session was ended "
                "before it could publish anything, its work is lost (`bundle --mirror` keeps a copy elsewhere)."
            )
            return
        self.continued = earlier
        if earlier.done:
            print(f"Training was finished by session {earlier.session} of {earlier.date}.")
            return
        print(
            f"Continues session {earlier.session} of {earlier.date} at step {earlier.step}; steps that a later session "
            "took without publishing them are lost and taken again."
        )
        for line in changed_versions(earlier.record):
            print(line)

    def _note_session(self) -> None:
        self.run.mkdir(parents=True, exist_ok=True)
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
        append_jsonl(self.run / LOG, row)

    # ---- failures ----

    def keep_output(self, error: BaseException) -> bool:
        """Marks the session as failed; True where there is work to be kept, so that the version has to complete.

        A stage that was brought keeps its own word (`paused`, say) until it is begun: that is no longer true here.
        """
        run = Run(self.run)
        if not self.trains or not (run.newest_sealed() or holds_model(run.final)):
            return False
        if self.environment.root is not None:
            self._try("tidying up", self._tidy, self.environment.root / "working", True)
        for name in self._own_stages():
            self._try(f"marking {name} as failed", self._mark_failed, name, error)
        self._try("noting the end", note_end, self.run, self.stage, State.FAILED, str(error))
        print(RED.format("This session failed; what it made so far is kept as its output."), flush=True)
        print(self.how_to_go_on)
        return True

    def _mark_failed(self, name: str, error: BaseException) -> None:
        record = Run(self.run).record(name)
        if record and record["status"] != State.DONE:
            write_record(self.run / name / RECORD, record | {"status": State.FAILED, "error": str(error)})

    def _try(self, what: str, work: Callable[..., None], *arguments: Any) -> None:
        """Does what may fail on a full disk or a damaged record: neither may cost the version its output."""
        try:
            work(*arguments)
        except (OSError, UserError) as error:
            print(f"Note: {what} failed ({error}).")


def _at(record: dict[str, Any]) -> str:
    facts = record["facts"]
    return f"Training is paused at step {facts['step']} of {facts['steps']} ({facts['fraction']:.0%})."
