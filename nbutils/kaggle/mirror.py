"""A second home for checkpoints: a private repository on the Hub, for sessions that Kaggle ends unpublished.

A thread of the notebook's kernel sends the newest valid checkpoint every so many minutes. Training runs in processes of
its own and never waits for it; what is being sent is linked into a folder beside, so that it may be pruned meanwhile.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

from nbutils.core.errors import UserError
from nbutils.core.files import link_tree
from nbutils.core.run.checkpoints import MANIFEST, Checkpoint, newest_whole
from nbutils.core.run.layout import CHECKPOINTS, Run
from nbutils.core.run.record import RECORD, RUN_RECORD
from nbutils.core.text import first_line

BESIDE = (RECORD, "settings.json", "metrics.jsonl", "samples.jsonl")
"""Files of the training stage that go with a checkpoint."""

PAUSES = (0.0, 2.0, 10.0)
"""Seconds before each try to read what is there."""


class Mirror:
    """Sends checkpoints of one run to `repo`, every `minutes`."""

    sent = -1
    _thread: threading.Thread | None = None

    def __init__(self, repo: str, minutes: float) -> None:
        self.repo = repo
        self.minutes = minutes
        self._ended = threading.Event()

    def start(self, run: Path) -> None:
        """Begins to send; the first time after `minutes`. Nothing where it began already, or where that does harm."""
        if self._thread is None and not self._ended.is_set():
            self._thread = threading.Thread(target=self._loop, args=(run,), daemon=True, name="checkpoint mirror")
            self._thread.start()

    def stop(self, flush: Path | None = None) -> None:
        """Ends sending, after what is under way; sends the newest checkpoint of the run `flush` before."""
        self._ended.set()
        if self._thread is None:
            return
        self._thread.join(timeout=600)
        if flush is not None and not self._thread.is_alive():
            self._try(flush)

    def fetch(self, name: str, step: int) -> Path | None:
        """Downloads the mirrored run of that name if it is further than `step`, which is attached; the folder it is in.

        UserError where it cannot be read and `step` is 0: training would begin again, and replace it.
        """
        problem = Exception()
        for pause in PAUSES:
            time.sleep(pause)
            try:
                return self._further(name, step)
            except (HTTPError, OSError) as error:
                problem = error
        unread = f"checkpoint_mirror '{self.repo}' cannot be read ({first_line(problem)})"
        if not step:
            raise UserError(f"{unread}: check that HF_TOKEN may read it, or bundle without --mirror.")
        self._ended.set()  # what it holds may be further, and sending would replace it for good
        print(f"Note: {unread}. This session continues from step {step}, which is attached, and sends nothing there.")
        return None

    def _further(self, name: str, beyond: int) -> Path | None:
        api = HfApi()
        try:
            files = api.list_repo_files(self.repo)
        except RepositoryNotFoundError:  # nothing was ever sent; or it is one that this token may not see, which tells
            api.create_repo(self.repo, private=True, exist_ok=True)
            return None
        there = (file.parent for file in map(Path, files) if file.match(f"{name}/*/{CHECKPOINTS}/*/{MANIFEST}"))
        if max((Checkpoint(folder).step for folder in there), default=0) <= beyond:
            return None
        folder = tempfile.mkdtemp(prefix="smallchat-mirror-")
        snapshot_download(self.repo, allow_patterns=f"{name}/**", local_dir=folder)
        print(f"The mirror {self.repo} is further than what is attached.")
        return Path(folder)

    def send(self, run: Path) -> int | None:
        """Sends the newest valid checkpoint, and drops older ones there; its step, None where there is nothing new."""
        training = Run(run).training
        checkpoint, _ = newest_whole(Run(run).checkpoints_folder)
        if checkpoint is None or checkpoint.step <= self.sent:
            return None
        step = checkpoint.step
        with tempfile.TemporaryDirectory(dir=run.parent, prefix=".mirror-") as folder:
            staged = Path(folder) / training.name
            copy = Checkpoint(staged / CHECKPOINTS / checkpoint.name)
            link_tree(checkpoint.path, copy.path)
            for name in BESIDE:
                if (training / name).is_file():
                    shutil.copyfile(training / name, staged / name)
            shutil.copyfile(run / RUN_RECORD, Path(folder) / RUN_RECORD)
            if problem := copy.damage():  # it would replace a good one there
                raise UserError(f"{checkpoint.name} was pruned meanwhile: it {problem}")
            api = HfApi()
            api.create_repo(self.repo, private=True, exist_ok=True)
            if not api.repo_info(self.repo).private:
                raise UserError(f"{self.repo} is public: make it private, or name another repository")
            api.upload_folder(
                repo_id=self.repo,
                folder_path=folder,
                path_in_repo=run.name,
                commit_message=f"{run.name}, step {step}",
                delete_patterns=f"{training.name}/{CHECKPOINTS}/*",
            )
        self.sent = step
        with suppress(Exception):  # tidiness alone: the Hub keeps, and counts, the files of every earlier commit
            api.super_squash_history(self.repo)
        return step

    def _loop(self, run: Path) -> None:
        while not self._ended.wait(60 * self.minutes):
            self._try(run)

    def _try(self, run: Path) -> None:
        try:
            self.send(run)
        except Exception as error:  # the Hub's client raises many kinds; training must continue whatever happens
            print(f"Note: the checkpoint could not be sent to {self.repo} ({first_line(error)}).", flush=True)
