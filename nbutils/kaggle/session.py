"""A bundled notebook's session behind its first cell: what it goes on from (`resume`), and its end (`close`)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbutils.core.errors import UserError
from nbutils.core.files import append_jsonl, resolve, write_json
from nbutils.core.notebooks import notebook_path, parameters, spec, stages
from nbutils.core.record import RECORD, stage_record, write_record
from nbutils.kaggle.attached import check_attached
from nbutils.kaggle.earlier import Earlier, best, bring, run_folders, size
from nbutils.kaggle.forecast import forecast_of
from nbutils.kaggle.guard import RED, Guard
from nbutils.kaggle.mirror import Mirror
from nbutils.kaggle.place import WHOLE, Place
from nbutils.kaggle.space import LIMIT, keep_under, used

if TYPE_CHECKING:
    from nbutils.core.settings import Settings

LOG = "kaggle.jsonl"
"""In the run folder: a row for each session, with its kind, its GPUs, its libraries and what it went on from."""


class Session:
    """One session of one bundled notebook."""

    def __init__(self, stage: str, profile: str, address: str, where: Place) -> None:
        self.stage = stage
        self.profile = profile
        self.address = address
        self.place = where
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
            settings = {name: _settings(name, names) for name in self._own_stages()}
            check_attached(settings, self.profile)
        self._bring(names)
        self._note_session()
        self.guard.watch(self._keep)
        if self.stage != WHOLE and self._is_done(names):
            print(f"{self.stage} is finished already; the cells below are passed over, and its output is handed on.")
            self.close()
            self.guard.pass_over()
        elif self.mirror is not None and self.place.internet:
            self.mirror.start(self.run)

    def run_all(self, names: Mapping[str, Any]) -> None:
        """Runs the pipeline with the parameters of this notebook; UserError with its last sentence if it fails."""
        profile = self.run.parent / f"{self.profile}.yaml"
        write_json(profile, dict(_parameters(names)))  # JSON is YAML
        command = [sys.executable, "-m", "nbutils", "run", str(profile)]
        last = ""
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                last = line.strip() or last
        if process.returncode:
            raise UserError(f"The pipeline ended with status {process.returncode}: {last}")

    def close(self) -> None:
        """Says how to go on, and keeps the output below Kaggle's limit."""
        if self.place.root is None:
            return
        if self.mirror is not None:
            self.mirror.stop()
        working = self.place.root / "working"
        for name in keep_under(working, self.run):
            print(f"Dropped {name}: the output was larger than {LIMIT / 1e9:.0f} GB.")
        record = stage_record(self.run, "train") if self.stage in ("train", WHOLE) else None
        if record and record["status"] == "paused":
            print(f"{_at(record)} {self.how_to_go_on}")
        expected = forecast_of(self.run) if self.stage in ("train", WHOLE) else None
        if expected is not None:
            print(expected.sentence)
        print(f"The output is {used(working) / 1e9:.2f} GB of {LIMIT / 1e9:.0f} GB.")

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
        upstream = [] if self.stage == WHOLE else list(spec(self.stage).reads)
        for name in [*upstream, *self._own_stages()]:
            if (self.run / name / RECORD).is_file():
                continue  # the first cells are executed a second time
            own = name == self.stage or self.stage == WHOLE
            asked = _settings(name, names).result_parameters() if own else None
            earlier = best(runs, name, asked)
            if name == "train" and own and not (earlier and earlier.done):
                runs += self._mirrored(earlier)
                earlier = best(runs, name, asked)
            if name == "train" and own:
                self._say_what_continues(earlier)
            if earlier is not None:
                self._copy(name, earlier, own)

    def _mirrored(self, earlier: Earlier | None) -> list[Path]:
        """The run folder that the mirror holds, where it is further than what is attached."""
        if self.mirror is None or not self.place.internet:
            return []
        folder = Path(tempfile.mkdtemp(prefix="smallchat-mirror-"))
        if not self.mirror.fetch(self.run.name, earlier.step if earlier else 0, folder):
            return []
        print(f"The mirror {self.mirror.repo} is further than what is attached.")
        return run_folders(folder, self.run.name)

    def _copy(self, name: str, earlier: Earlier, own: bool) -> None:
        assert self.place.root is not None
        needed, there = size(earlier, own), used(self.place.root / "working")
        if there + needed > LIMIT:
            raise UserError(
                f"{earlier.folder} has {needed / 1e9:.1f} GB beside {there / 1e9:.1f} GB that are here, more than the "
                f"{LIMIT / 1e9:.0f} GB that Kaggle keeps: lower checkpoints_kept, or use a smaller base model."
            )
        bring(earlier, self.run / name, with_checkpoint=own and not earlier.done)
        for file in ("run.json", LOG) if own else ("run.json",):
            source = earlier.folder.parent / file
            if source.is_file() and not (self.run / file).is_file():
                shutil.copyfile(source, self.run / file)
        print(f"{name}: taken from {earlier.folder} ({needed / 1e6:,.1f} MB)")

    def _say_what_continues(self, earlier: Earlier | None) -> None:
        for remark in earlier.remarks if earlier else []:
            print(f"Note: {remark}.")
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
        for line in _changed_versions(earlier.record):
            print(line)

    def _is_done(self, names: Mapping[str, Any]) -> bool:
        from nbutils.core.verdict import judge

        return judge(spec(self.stage), _settings(self.stage, names)).state == "done"

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
        """Marks the stage as failed; True where there is work to be kept, so that the version has to complete."""
        train = self.run / "train"
        if self.stage not in ("train", WHOLE) or not (
            any((train / "checkpoints").glob("step-*/manifest.json")) or (train / "final" / "config.json").is_file()
        ):
            return False
        for name in self._own_stages():
            record = stage_record(self.run, name)
            if record and record["status"] == "running":
                write_record(self.run / name / RECORD, record | {"status": "failed", "error": str(error)})
        print(RED.format("This session failed; what it made so far is kept as its output."), flush=True)
        print(self.how_to_go_on)
        return True


def _shell() -> Any:
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()


def _parameters(names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The names among a notebook's that are parameters of some stage."""
    known = {name for stage in stages() for name in parameters(notebook_path(stage))}
    for name in sorted(known):
        if name in names:
            yield name, names[name]


def _settings(name: str, names: Mapping[str, Any]) -> Settings:
    """A stage's settings out of a notebook's names; what the notebook does not name has the stage's own default."""
    from nbutils.pipeline.parameters import settings_class

    defaults = {n: p.default for n, p in parameters(notebook_path(spec(name))).items()}
    kind = settings_class(spec(name))
    return kind.checked({n: names.get(n, value) for n, value in defaults.items() if n in kind.model_fields})


def _at(record: dict[str, Any]) -> str:
    facts = record["facts"]
    return f"Training is paused at step {facts['step']} of {facts['steps']} ({facts['fraction']:.0%})."


def _changed_versions(record: dict[str, Any]) -> Iterator[str]:
    """A line for each library that the image brings in another version than the session before had."""
    from nbutils.core.provenance import versions

    now = versions()
    for name, before in record.get("versions", {}).items():
        if now.get(name) != before and name != "smallchat":
            yield f"Since then {name} has changed from {before} to {now.get(name)}; that is recorded, the run goes on."
