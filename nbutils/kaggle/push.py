"""`python -m nbutils kaggle push`: bundles to Kaggle in order, each when what it reads is there, until all are done.

What is done or under way already is not pushed again, so that the same command continues wherever it was cut off.
Kaggle answers a push with inputs it does not know as a success, and runs the notebook without them.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import Json, read_json, sha256_of_file, shown, write_json
from nbutils.core.run.layout import Run
from nbutils.core.run.record import read_record
from nbutils.core.run.state import State
from nbutils.kaggle.account import Account
from nbutils.kaggle.bundle import METADATA
from nbutils.kaggle.carry_over import NOTE
from nbutils.kaggle.notebook_session import forecast
from nbutils.train.forecast import TUNED

MOST_SESSIONS = 20
"""Of one notebook; more than that is a mistake, not a long training."""
MOST_UNKNOWN = 10
"""Looks in a row at a pushed notebook of which Kaggle knows nothing."""
RESULTS = r"^(?!.*(/checkpoints/|\.partial))"
"""What is downloaded at the end: everything but checkpoints."""
POLL_SECONDS = 30.0
"""Between two looks."""
ENDED = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")
PUSHED = "pushed.json"
"""Beside a bundle: which notebook was pushed last, as which version, on which versions of what it reads."""


class Pusher:
    """Pushes bundles with an authenticated `KaggleApi`."""

    def __init__(self, api: Any, follow: bool) -> None:
        self.account = Account(api)
        self.follow = follow

    def push_all(self, folders: list[Path]) -> None:
        """Pushes each bundle when the notebooks that it reads have ended; UserError where one cannot continue."""
        for folder in folders:
            facts = read_json(folder / METADATA)
            for address, bundle in _reads(folder, facts):
                if not self._is_there(bundle, address):
                    raise UserError(
                        f"{address} is not on Kaggle yet, and later notebooks read its output: push it first."
                    )
                if self._result(address)["status"] == State.PAUSED:
                    raise UserError(
                        f"{address} is paused, so that later notebooks have nothing to read: push it again until it is "
                        "done, or use --follow."
                    )
            self._sessions(folder, facts)

    def _sessions(self, folder: Path, facts: Json) -> None:
        """Pushes one bundle; with `follow` again and again until it is no longer paused, and downloads its results."""
        address, before = facts["id"], None
        done = self._is_done(folder, facts)
        if self.follow and not done and self.account.status(address) == "COMPLETE":
            before = self._note(address)
        sessions = 0
        while not done:
            if sessions == MOST_SESSIONS:
                raise UserError(f"{address} is still paused after {sessions} sessions: is its budget too small?")
            sessions += 1
            self._push(folder, facts)
            time.sleep(POLL_SECONDS)
            if not self.follow:
                return
            before = self._result(address, before)
            done = before["status"] == State.DONE
            if not done:
                print(f"{address} is paused; the next session continues it.")
        if self.follow:
            target = folder / "output"
            files = self.account.output(address, target, RESULTS)
            print(f"{address}: {files} files in {shown(target)}")
            for file in target.rglob(TUNED):
                print(forecast(Run(file.parent)))

    def _is_done(self, folder: Path, facts: Json) -> bool:
        """Whether the newest version is this bundle's and done, after waiting for one that is under way."""
        address, pushed = facts["id"], _pushed(folder)
        status, same = self.account.status(address), pushed.get("mark") == _mark(folder, facts)
        if status is not None and status not in ENDED:
            print(f"{address} is under way already: waiting for it (cancel it on its page to push at once).")
            if same:
                return bool(self._result(address)["status"] == State.DONE)
            self._wait(address)
            return False
        known = same and pushed["version"] is not None
        if not known or status != "COMPLETE" or self._note(address).get("status") != State.DONE:
            return False
        print(f"{address}: version {pushed['version']} is done, and nothing has changed since.")
        return True

    def _push(self, folder: Path, facts: Json) -> None:
        address, sources, mark = facts["id"], facts["kernel_sources"], _mark(folder, facts)
        if address in sources and not self._is_there(folder, address):
            sources = [source for source in sources if source != address]
        # Before the answer, which may be lost: a session that is under way then is this bundle's all the same.
        write_json(folder / PUSHED, {"schema": 1, "version": None, "mark": mark})
        with tempfile.TemporaryDirectory() as copy:
            shutil.copy(folder / facts["code_file"], copy)
            write_json(Path(copy) / METADATA, facts | {"kernel_sources": sources})
            answer = self.account.push(address, Path(copy))
        wrong = f"Kaggle refuses {address}: {answer.error}" if answer.error else ""
        for kind in ("kernel", "dataset"):
            if unknown := getattr(answer, f"invalid_{kind}_sources", None):
                wrong = (
                    f"Kaggle does not know these {kind} inputs of {address}: {', '.join(unknown)}. It runs the "
                    "notebook without them all the same: stop that version on its page, check the names and whether "
                    "they are yours, and push again."
                )
        if wrong:
            (folder / PUSHED).unlink()  # or its output would be taken for this bundle's
            raise UserError(wrong)
        write_json(folder / PUSHED, {"schema": 1, "version": answer.version_number, "mark": mark})
        print(f"{address}: version {answer.version_number} pushed, {answer.url}")

    def _is_there(self, folder: Path, address: str) -> bool:
        """Whether a notebook was pushed from this folder, or Kaggle knows it; "no" is believed at the third look.

        Kaggle's answers for a notebook that is not there are also those of a bad moment.
        """
        if _pushed(folder).get("version") is not None:
            return True
        for look in range(3):
            if look:
                time.sleep(POLL_SECONDS)
            if self.account.status(address) is not None:
                return True
        return False

    def _result(self, address: str, before: Json | None = None) -> Json:
        """The note of the newest version, when it has ended. UserError for everything but `done` and `paused`.

        `before` is the note before a push: for a while that version may still count as the newest.
        """
        for _ in range(MOST_UNKNOWN):
            status = self._wait(address)
            if status != "COMPLETE":
                raise UserError(
                    f"{address} ended as {status.lower()}: read its log on its page; push again, and it continues from "
                    "the last output that it published."
                )
            note = self._note(address)
            if note == before:
                time.sleep(POLL_SECONDS)
                continue
            if note.get("status") in (State.DONE, State.PAUSED):
                return note
            found = f"says {note['status']}: {note.get('error') or 'see its log'}" if note else f"has no {NOTE}"
            raise UserError(
                f"{address} completed, but it is not done (its output {found}): read its log on its page, mend that, "
                "and push again."
            )
        raise UserError(
            f"{address} shows the output of the version before, though a new one has ended: look at its page, and push "
            "again to continue."
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
                print(f"{address}: {status.lower()}")
            last = status or last
            time.sleep(POLL_SECONDS)
        return str(status)

    def _note(self, address: str) -> Json:
        """What the newest version, which has to be complete, says of its end; {} where it says nothing."""
        with tempfile.TemporaryDirectory() as folder:
            self.account.output(address, Path(folder), rf"(^|/){NOTE}$")
            notes = [read_record(path) or {} for path in Path(folder).rglob(NOTE)]
        return max(notes, key=lambda note: str(note.get("time")), default={})


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


def _pushed(folder: Path) -> Json:
    """What a bundle's PUSHED says; empty where it was never pushed from here."""
    return read_record(folder / PUSHED) or {}


def _reads(folder: Path, facts: Json) -> list[tuple[str, Path]]:
    """The other notebooks that one reads, each with the folder in which its bundle would be."""
    others = [source for source in facts["kernel_sources"] if source != facts["id"]]
    return [(source, folder.parent / source.partition("/")[2]) for source in others]


def _mark(folder: Path, facts: Json) -> Json:
    """What a bundle's version depends on: its files, and the versions of what it reads that were pushed from here."""
    return {
        "notebook": sha256_of_file(folder / facts["code_file"]),
        "metadata": sha256_of_file(folder / METADATA),
        "reads": {source: _pushed(bundle).get("version") for source, bundle in _reads(folder, facts)},
    }
