"""A bundled notebook's session behind its first cell: what it goes on from (`resume`), and its end (`close`)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbutils.core.cachekey import key_parts
from nbutils.core.errors import UserError
from nbutils.core.files import append_jsonl, resolve, write_json
from nbutils.core.notebooks import spec, stages
from nbutils.core.record import RECORD, stage_record, stage_status, write_record
from nbutils.kaggle.attached import check_attached
from nbutils.kaggle.earlier import Earlier, best, bring, run_folders, size
from nbutils.kaggle.ending import DONE, FAILED, PAUSED, UNFINISHED, write_ending
from nbutils.kaggle.forecast import forecast_of
from nbutils.kaggle.guard import RED, Guard
from nbutils.kaggle.mirror import Mirror
from nbutils.kaggle.place import WHOLE, Place
from nbutils.kaggle.space import LIMIT, keep_under, used
from nbutils.kaggle.standing import ACCEPT, changed_versions, given_parameters, is_done, settings_of, stays
from nbutils.kaggle.whole import LONG, run_pipeline, too_late

if TYPE_CHECKING:
    from nbutils.core.settings import Settings

LOG = "kaggle.jsonl"
"""In the run folder: a row for each session, with its kind, its GPUs, its libraries and what it went on from."""


class Session:
    """One session of one bundled notebook."""

    def __init__(self, stage: str, profile: str, address: str, where: Place, stale: str = "", recipe: str = "") -> None:
        self.stage = stage
        self.profile = profile
        self.address = address
        self.place = where
        self.stale = stale
        self.recipe = recipe or profile
        self.waits = ""
        self.run = Path()
        self.continued: Earlier | None = None
        self.mirror: Mirror | None = None
        self.guard = Guard(_shell())

    def resume(self, names: Mapping[str, Any]) -> None:
        """Brings what earlier sessions and notebooks made, and passes over a stage that is finished already."""
        self.run = resolve(str(names["run_dir"]))
        if self.place.root is None:
            return
        if not self.place.internet:
            from nbutils.pipeline.fetch import wanted_by

            wanted = wanted_by({name: settings_of(name, names) for name in self._own_stages()})
            check_attached([(item.kind, item.name, item.revision, item.purpose) for item in wanted], [], self.recipe)
        self._bring(names)
        self._note_session()
        self.guard.watch(self._keep)
        if self.stage != WHOLE and is_done(self.stage, names):
            print(f"{self.stage} is finished already; the cells below are passed over, and its output is handed on.")
            self.close()
            self.guard.pass_over()
        elif self.mirror is not None and self.place.internet:
            self.mirror.start(self.run)

    def run_all(self, names: Mapping[str, Any]) -> None:
        """Runs the pipeline with the parameters of this notebook; UserError with its last sentence if it fails.

        It stops before the long stage that follows training where Kaggle might end the session in the midst of it:
        then nothing of the training would be published. A session that only hands a finished training on goes ahead.
        """
        self.waits = ""
        profile = self.run.parent / f"{self.profile}.yaml"
        write_json(profile, dict(given_parameters(names)))  # JSON is YAML
        run_pipeline(profile, self.stale, short=True)
        if stage_status(self.run, "train") != "done":
            return
        trained = self.continued is None or not self.continued.done
        if trained and self.place.root is not None and not is_done(LONG, names):
            self.waits = too_late(float(names.get("budget_minutes") or 0))
        if not self.waits:
            run_pipeline(profile, self.stale)

    def close(self) -> None:
        """Says how to go on, keeps the output below Kaggle's limit, and notes how the session ended."""
        if self.place.root is None:
            return
        working = self.place.root / "working"
        self._tidy(working)
        record = stage_record(self.run, "train") if self.stage in ("train", WHOLE) else None
        paused = bool(record and record["status"] == "paused")
        if record and paused:
            print(f"{_at(record)} {self.how_to_go_on}")
        elif self.waits:
            print(f"{self.waits} {self.how_to_go_on}")
        done = all(stage_status(self.run, name) == "done" for name in self._own_stages())
        write_ending(self.run, self.stage, PAUSED if paused or self.waits else DONE if done else UNFINISHED)
        expected = forecast_of(self.run) if self.stage in ("train", WHOLE) else None
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
        return (
            f"To go on: attach this notebook's own output (Add Input → Your Work → {self.address.partition('/')[2]}) "
            "where it is not among its inputs yet, and Save Version → Save & Run All once more; `python -m nbutils "
            "kaggle push` does both."
        )

    def _own_stages(self) -> list[str]:
        return [s.name for s in stages()] if self.stage == WHOLE else [self.stage]

    # ---- what came before ----

    def _bring(self, names: Mapping[str, Any]) -> None:
        assert self.place.root is not None
        runs = run_folders(self.place.root / "input", self.run.name)
        upstream = [] if self.stage == WHOLE else [*spec(self.stage).reads, *spec(self.stage).consults]
        for name in [*upstream, *self._own_stages()]:
            if (self.run / name / RECORD).is_file():
                continue  # the first cells are executed a second time
            own = name == self.stage or self.stage == WHOLE
            settings = settings_of(name, names) if own else None
            asked = self._asked(name, settings) if settings else None
            earlier, remarks = best(runs, name, asked)
            if name == "train" and own and not (earlier and earlier.done and earlier.fits):
                runs += self._mirrored(earlier if earlier and (earlier.fits or self.stale == ACCEPT) else None)
                earlier, remarks = best(runs, name, asked)
            for remark in remarks:
                print(f"Note: {remark}.")
            kept = earlier
            if earlier is not None:
                self._copy(name, earlier, own)
                if settings and not stays(earlier, name, settings, self.stale, self.stage == WHOLE):
                    kept = None
            if name == "train" and own:
                self._say_what_continues(kept)

    def _asked(self, name: str, settings: Settings) -> dict[str, Any]:
        """The parts of the key that work to go on from has to have; in a pipeline earlier stages may still change."""
        parts = key_parts(spec(name), settings)
        return {part: value for part, value in parts.items() if part != "upstream" or self.stage != WHOLE}

    def _mirrored(self, earlier: Earlier | None) -> list[Path]:
        """The run folder that the mirror holds, where it is further than what is attached.

        UserError where it can't be read and nothing is attached: training would start at step 0, and replace it.
        """
        if self.mirror is None or not self.place.internet:
            return []
        folder, step = Path(tempfile.mkdtemp(prefix="smallchat-mirror-")), earlier.step if earlier else 0
        try:
            if not self.mirror.fetch(self.run.name, step, folder):
                return []
        except UserError as error:
            if not step:
                raise
            self.mirror = None  # what it holds may be further, and sending would replace it for good
            print(f"Note: {error} This session goes on from step {step}, which is attached, and sends nothing there.")
            return []
        print(f"The mirror {self.mirror.repo} is further than what is attached.")
        return run_folders(folder, self.run.name)

    def _copy(self, name: str, earlier: Earlier, own: bool) -> None:
        assert self.place.root is not None
        needed, there = size(earlier, own), used(self.place.root / "working")
        if there + needed > LIMIT:
            raise UserError(
                f"{earlier.folder} has {needed / 1e9:.1f} GB beside {there / 1e9:.1f} GB that are here, more than the "
                f"{LIMIT / 1e9:.0f} GB that Kaggle keeps: remove what else lies in the working folder, or take a "
                "smaller base model."
            )
        bring(earlier, self.run / name, with_checkpoint=own and not earlier.done)
        for file in ("run.json", LOG) if own else ("run.json",):
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
        from nbutils.core.provenance import versions

        self.run.mkdir(parents=True, exist_ok=True)
        row = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "stage": self.stage,
            "run_type": self.place.run_type,
            "gpus": [gpu.name for gpu in self.place.gpus],
            "internet": self.place.internet,
            "continues": str(self.continued.folder) if self.continued else None,
            "step": self.continued.step if self.continued else 0,
            "versions": versions(),
        }
        append_jsonl(self.run / LOG, row)

    # ---- failures ----

    def _keep(self, error: BaseException) -> bool:
        """Marks the session as failed; True where there is work to be kept, so that the version has to complete.

        A stage that was brought keeps its own word (`paused`, say) until it is begun: that is no longer true here.
        """
        train = self.run / "train"
        if self.stage not in ("train", WHOLE) or not (
            any((train / "checkpoints").glob("step-*/manifest.json")) or (train / "final" / "config.json").is_file()
        ):
            return False
        if self.place.root is not None:
            self._try("tidying up", self._tidy, self.place.root / "working", True)
        for name in self._own_stages():
            self._try(f"marking {name} as failed", self._mark_failed, name, error)
        self._try("noting the end", write_ending, self.run, self.stage, FAILED, str(error))
        print(RED.format("This session failed; what it made so far is kept as its output."), flush=True)
        print(self.how_to_go_on)
        return True

    def _mark_failed(self, name: str, error: BaseException) -> None:
        record = stage_record(self.run, name)
        if record and record["status"] != "done":
            write_record(self.run / name / RECORD, record | {"status": FAILED, "error": str(error)})

    def _try(self, what: str, work: Callable[..., None], *arguments: Any) -> None:
        """Does what may fail on a full disk or a damaged record: neither may cost the version its output."""
        try:
            work(*arguments)
        except (OSError, UserError) as error:
            print(f"Note: {what} failed ({error}).")


def _shell() -> Any:
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()


def _at(record: dict[str, Any]) -> str:
    facts = record["facts"]
    return f"Training is paused at step {facts['step']} of {facts['steps']} ({facts['fraction']:.0%})."
