"""`python -m nbutils kaggle push`: bundles to Kaggle in order, each when what it reads is there, until all are done.

What is done or under way already is not pushed again, so that the same command goes on wherever it was cut off.
Kaggle answers a push with inputs it does not know as a success, and runs the notebook without them.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, sha256_of_file, shown, write_json
from nbutils.core.run.state import State
from nbutils.kaggle.account import PATIENCE_SECONDS, Account
from nbutils.kaggle.bundle import METADATA, stage_of
from nbutils.kaggle.version import Ended, how_it_ended

POLL_SECONDS = 30.0
MOST_SESSIONS = 20
"""Pushes of one notebook; more than that is a mistake, not a long training."""
MOST_UNKNOWN = 10
"""Looks in a row at a pushed notebook of which Kaggle knows nothing."""
RESULTS = r"^(?!.*(/checkpoints/|\.partial))"
"""What is downloaded at the end: everything but checkpoints."""
ENDED = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")
PUSHED = "pushed.json"
"""Beside a bundle: which notebook was pushed last, as which version, on which versions of what it reads."""


class Pusher:
    """Pushes bundles with an authenticated `KaggleApi`; `say` takes lines for people.

    `poll`: seconds between two looks; `patience`: seconds for which a network in trouble is asked again.
    """

    def __init__(
        self,
        api: Any,
        follow: bool,
        poll: float = POLL_SECONDS,
        say: Callable[[str], None] = print,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.account = Account(api, poll, patience, say)
        self.follow = follow
        self.poll = poll
        self.say = say

    def push_all(self, folders: list[Path]) -> None:
        """Pushes each bundle when the notebooks that it reads have ended; UserError where one cannot go on."""
        for folder in folders:
            facts = read_json(folder / METADATA)
            for source in facts["kernel_sources"]:
                if source != facts["id"]:
                    self._upstream(source, (folder.parent / source.partition("/")[2] / PUSHED).is_file())
            self._sessions(folder, facts)

    def _sessions(self, folder: Path, facts: dict[str, Any]) -> None:
        """Pushes one bundle; with `follow` again and again, until it is no longer paused."""
        address, mark = facts["id"], _mark(folder, facts)
        if self._is_done(folder, address, mark):
            if self.follow:
                self._download(folder, address)
            return
        before = self._output_before(address) if self.follow else ""
        for _ in range(MOST_SESSIONS):
            self._push(folder, facts, mark)
            time.sleep(self.poll)
            if not self.follow:
                return
            ended = self._new_end(address, before)
            if ended.state is State.DONE:
                self._download(folder, address)
                return
            before = ended.mark
            self.say(f"{address} is paused; the next session goes on from there.")
        raise UserError(
            f"{address} is still paused after {MOST_SESSIONS} sessions: look at its log; is its budget too small?"
        )

    def _is_done(self, folder: Path, address: str, mark: dict[str, Any]) -> bool:
        """Whether the newest version is this bundle's and done, after waiting for one that is under way."""
        pushed = read_json(folder / PUSHED) if (folder / PUSHED).is_file() else {}
        same = pushed.get("mark") == mark
        status = self.account.status(address)
        if status is not None and status not in ENDED:
            self.say(f"{address} is under way already: waiting for it (cancel it on its page to push at once).")
            if not same:
                self._wait(address)
                return False
            self._completed(address)
            return self._state(address) is State.DONE
        known = same and pushed["version"] is not None
        if not known or status != "COMPLETE" or self._ended(address).state is not State.DONE:
            return False
        self.say(f"{address}: version {pushed['version']} is done, and nothing has changed since.")
        return True

    def _push(self, folder: Path, facts: dict[str, Any], mark: dict[str, Any]) -> None:
        before = read_json(folder / PUSHED) if (folder / PUSHED).is_file() else {}
        # Kaggle's answers for a notebook that is not there are also those of a bad moment.
        reads_itself = facts["id"] in facts["kernel_sources"]
        first = reads_itself and before.get("version") is None and not self._is_there(facts["id"])
        # Before the answer, which may be lost: a session that is under way then is this bundle's all the same.
        write_json(folder / PUSHED, {"schema": 1, "version": None, "mark": mark})
        with _prepared(folder, facts, without_own=first) as prepared:
            answer = self.account.push(facts["id"], prepared)
        if answer.error:
            (folder / PUSHED).unlink()
            raise UserError(f"Kaggle refuses {facts['id']}: {answer.error}")
        for kind in ("kernel", "dataset", "model"):
            if unknown := getattr(answer, f"invalid_{kind}_sources", None):
                (folder / PUSHED).unlink()  # or its output would be taken for this bundle's
                raise UserError(
                    f"Kaggle does not know these {kind} inputs of {facts['id']}: {', '.join(unknown)}. It runs the "
                    "notebook without them all the same: stop that version on its page, check the names and whether "
                    "they are yours, and push again."
                )
        write_json(folder / PUSHED, {"schema": 1, "version": answer.version_number, "mark": mark})
        self.say(f"{facts['id']}: version {answer.version_number} pushed, {answer.url}")
        if (hours := self.account.gpu_hours()) is not None:
            self.say(f"GPU quota: {hours[0]:.1f} of {hours[1]:.0f} hours left this week")

    def _is_there(self, address: str) -> bool:
        """Whether Kaggle knows a notebook; "no" is believed at the third look."""
        for look in range(3):
            if look:
                time.sleep(self.poll)
            if self.account.status(address) is not None:
                return True
        return False

    def _output_before(self, address: str) -> str:
        """The mark of the output that is there before a push; '' for none."""
        return self._ended(address).mark if self.account.status(address) == "COMPLETE" else ""

    def _ended(self, address: str) -> Ended:
        """How the newest version ended."""
        return how_it_ended(self.account, address, stage_of(address))

    def _new_end(self, address: str, before: str) -> Ended:
        """How the version that was just pushed ended: for a while the one before may still count as the newest."""
        for _ in range(MOST_UNKNOWN):
            self._completed(address)
            ended = self._ended(address)
            if ended.mark != before:
                return self._sound(address, ended)
            time.sleep(self.poll)
        raise UserError(
            f"{address} shows the output of the version before, though a new one has ended: look at its page, and push "
            "again to go on."
        )

    def _upstream(self, address: str, pushed: bool) -> None:
        """Waits until a notebook that others read from has ended; UserError unless its stage is done.

        `pushed`: it was pushed from here, so that it is there whatever Kaggle says at the first look.
        """
        if not pushed and self.account.status(address) is None:
            raise UserError(f"{address} is not on Kaggle yet, and later notebooks read its output: push it first.")
        self._completed(address)
        if self._state(address) is State.PAUSED:
            raise UserError(
                f"{address} is paused, so that later notebooks have nothing to read: push it again until it is done, "
                "or use --follow."
            )

    def _completed(self, address: str) -> None:
        """Waits for the newest version; UserError if it failed."""
        status = self._wait(address)
        if status != "COMPLETE":
            raise UserError(
                f"{address} ended as {status.lower()}: read its log on its page; push again, and it goes on from the "
                "last output that it published."
            )

    def _wait(self, address: str) -> str:
        """How the newest version has ended, when it has. UserError where Kaggle does not know the notebook."""
        last, unknown = "", 0
        while (status := self.account.status(address)) not in ENDED:
            unknown = 0 if status else unknown + 1
            if unknown >= MOST_UNKNOWN:
                raise UserError(
                    f"Kaggle shows no session of {address}, though it was pushed: check that these credentials are of "
                    "the user who owns it, and that its address on kaggle.com/code is this one (bundle --owner)."
                )
            if status and status != last:
                self.say(f"{address}: {status.lower()}")
            last = status or last
            time.sleep(self.poll)
        return str(status)

    def _state(self, address: str) -> State:
        """`done` or `paused`, by what the output says. UserError for everything else."""
        return self._sound(address, self._ended(address)).state

    def _sound(self, address: str, ended: Ended) -> Ended:
        if ended.state not in (State.DONE, State.PAUSED):
            raise UserError(f"{address} {ended.words}: read its log on its page, mend that, and push again.")
        return ended

    def _download(self, folder: Path, address: str) -> None:
        target = folder / "output"
        files = self.account.output(address, target, RESULTS)
        self.say(f"{address}: {files} files in {shown(target)}")


def bundle_folders(folder: Path) -> list[Path]:
    """The bundles to push: `folder` itself, or those in it in order, without the one that runs the whole pipeline."""
    if (folder / METADATA).is_file():
        return [folder]
    found = [path.parent for path in sorted(folder.glob(f"*/{METADATA}")) if not path.parent.name.endswith("-pipeline")]
    if not found:
        raise UserError(
            f"{shown(folder)} holds no bundles (no {METADATA}): `python -m nbutils kaggle bundle PROFILE --out "
            f"{shown(folder)} --owner NAME` makes them."
        )
    return found


def _mark(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """What a bundle's version stands on: its files, and the versions of what it reads that were pushed from here."""
    versions = {}
    for source in facts["kernel_sources"]:
        beside = folder.parent / source.partition("/")[2] / PUSHED
        if source != facts["id"] and beside.is_file():
            versions[source] = read_json(beside)["version"]
    hashes = {"notebook": sha256_of_file(folder / facts["code_file"]), "metadata": sha256_of_file(folder / METADATA)}
    return hashes | {"reads": versions}


@contextmanager
def _prepared(folder: Path, facts: dict[str, Any], without_own: bool) -> Iterator[Path]:
    """The folder to push; for a first push a copy whose inputs leave the notebook itself out."""
    if not without_own:
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        shutil.copy(folder / facts["code_file"], copy)
        sources = [source for source in facts["kernel_sources"] if source != facts["id"]]
        write_json(Path(copy) / METADATA, facts | {"kernel_sources": sources})
        yield Path(copy)
