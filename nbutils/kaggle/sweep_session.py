"""The session of a bundled sweep: what earlier ones left is found, and their trials go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from IPython import get_ipython

from nbutils.core.files import files_below, kaggle_root, read_json, resolve
from nbutils.core.run.checkpoints import PARTIAL
from nbutils.core.run.layout import Run
from nbutils.core.run.record import RECORD
from nbutils.core.run.state import State
from nbutils.core.text import counted
from nbutils.kaggle.carry_over import LIMIT, bring_files, used
from nbutils.kaggle.guard import RED, Guard
from nbutils.kaggle.notebook_session import TRAINING, Session
from nbutils.sweep.answer import VERDICT
from nbutils.sweep.settings import SWEEP_RECORD


def trials(sweep: Path) -> list[Run]:
    """The runs of the trials of a sweep that have been begun."""
    named = (sweep / name for name in read_json(sweep / SWEEP_RECORD)["trials"])
    return [Run(folder) for folder in named if (folder / TRAINING / RECORD).is_file()]


def progress(sweep: Path) -> tuple[int, int]:
    """How far a sweep is: its finished trials, and the steps of all checkpoints of the others."""
    begun = trials(sweep)
    done = sum(_done(trial) for trial in begun)
    newest = (None if _done(trial) else trial.newest_sealed() for trial in begun)
    return done, sum(each.step for each in newest if each)


def _done(trial: Run) -> bool:
    return trial.state(TRAINING) is State.DONE


class SweepSession(Session):
    """One session of notebook 07. `run` is the folder of the sweep; its trials are runs below it."""

    def resume(self, names: Mapping[str, Any]) -> None:
        """Brings what an earlier session made."""
        self.run, self.names = Run(resolve(str(names["run_dir"]))), names
        if self.environment.root is None:
            return
        self.bring_earlier()
        Guard(get_ipython(), self.keep_output)

    def bring_earlier(self) -> None:
        """Copies the sweep of the earlier session that came furthest; of its finished trials no checkpoints.

        UserError where there is no room for it.
        """
        records = (kaggle_root() / "input").rglob(SWEEP_RECORD)
        found = [path.parent for path in records if path.parent.name == self.run.path.name]
        if not found or (self.run.path / SWEEP_RECORD).is_file():  # the first cells are executed a second time
            return
        source = max(found, key=progress)
        finished = {trial.checkpoints_folder for trial in trials(source) if _done(trial)}
        files = [
            file
            for file in files_below(source)
            if not any(part.endswith(PARTIAL) for part in file.relative_to(source).parts)
            and not finished.intersection(file.parents)
        ]
        bring_files(files, source, self.run.path)
        print(f"Continues the sweep in {source}.")

    def close(self) -> None:
        """Says how to continue, keeps the output below Kaggle's limit, and notes how the session ended."""
        if self.environment.root is None:
            return
        self._tidy()
        self._log_session()
        left = read_json(self.run.path / VERDICT)["left"]
        if left:
            print(f"{counted(left, 'trial')} left. {self.how_to_continue}")
        self._note_end(State.PAUSED if left else State.DONE)
        print(f"The output is {used(kaggle_root() / 'working') / 1e9:.2f} GB of {LIMIT / 1e9:.0f} GB.")

    def keep_output(self, error: BaseException) -> bool:
        """Notes that the session failed; True where trials are there to be kept."""
        edited = self.environment.run_type == "Interactive"  # who sits there mends the cell and runs it again
        if edited or not (self.run.path / SWEEP_RECORD).is_file() or not any(progress(self.run.path)):
            return False
        self._try(self._tidy)
        self._try(self._log_session)
        self._try(self._note_end, State.FAILED, str(error))
        print(RED.format(f"This session failed; its trials are kept as its output. {self.how_to_continue}"), flush=True)
        return True

    def runs(self) -> list[Run]:
        """The trials, finished ones first."""
        return sorted(trials(self.run.path), key=_done, reverse=True)
