"""`python -m nbutils kaggle push`: bundles to Kaggle in order, each when what it reads is there, until all are done.

Requests go through the `kaggle` package (2.2: `KaggleApi.kernels_push`, `kernels_status`, `kernels_output`,
`quota_view`). Kaggle answers a push with inputs it does not know as a success, and runs the notebook without them.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, shown, write_json
from nbutils.core.record import stage_record
from nbutils.kaggle.bundle import METADATA
from nbutils.kaggle.earlier import runs_below

POLL_SECONDS = 30.0
MOST_SESSIONS = 20
"""Pushes of one notebook; more than that is a mistake, not a long training."""
RECORDS = r"(^|/)(stage|run)\.json$"
RESULTS = r"^(?!.*(/checkpoints/|\.partial))"
"""What is downloaded: first the records, at the end everything but checkpoints."""
ENDED = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")


class Pusher:
    """Pushes bundles with an authenticated `KaggleApi`; `say` takes lines for people."""

    def __init__(self, api: Any, follow: bool, poll: float = POLL_SECONDS, say: Callable[[str], None] = print) -> None:
        self.api = api
        self.follow = follow
        self.poll = poll
        self.say = say

    def push_all(self, folders: list[Path]) -> None:
        """Pushes each bundle when the notebooks that it reads have ended; UserError where one cannot go on."""
        for folder in folders:
            facts = read_json(folder / METADATA)
            for source in facts["kernel_sources"]:
                if source != facts["id"]:
                    self._upstream(source)
            self._sessions(folder, facts)

    def _sessions(self, folder: Path, facts: dict[str, Any]) -> None:
        """Pushes one bundle; with `follow` again and again, until it is no longer paused."""
        for _ in range(MOST_SESSIONS):
            self._push(folder, facts)
            if not self.follow:
                return
            time.sleep(self.poll)  # for a moment the version before may still count as the newest
            self._wait(facts["id"])
            if self._state(facts["id"]) == "done":
                self._download(folder, facts["id"])
                return
            self.say(f"{facts['id']} is paused; the next session goes on from there.")
        raise UserError(
            f"{facts['id']} is still paused after {MOST_SESSIONS} sessions: look at its log; is its budget too small?"
        )

    def _push(self, folder: Path, facts: dict[str, Any]) -> None:
        first = self._status(facts["id"]) is None
        with _prepared(folder, facts, without_own=first) as prepared, _speaking(facts["id"]):
            answer = self.api.kernels_push(str(prepared))
        if answer.error:
            raise UserError(f"Kaggle refuses {facts['id']}: {answer.error}")
        for kind in ("kernel", "dataset", "model"):
            if unknown := getattr(answer, f"invalid_{kind}_sources", None):
                raise UserError(
                    f"Kaggle does not know these {kind} inputs of {facts['id']}: {', '.join(unknown)}. It runs the "
                    "notebook without them all the same: stop that version on its page, check the names and whether "
                    "they are yours, and push again."
                )
        self.say(f"{facts['id']}: version {answer.version_number} pushed, {answer.url}")
        self._say_quota()

    def _upstream(self, address: str) -> None:
        """Waits until a notebook that others read from has ended; UserError unless its stage is done."""
        if self._status(address) is None:
            raise UserError(f"{address} is not on Kaggle yet, and later notebooks read its output: push it first.")
        self._wait(address)
        if self._state(address) == "paused":
            raise UserError(
                f"{address} is paused, so that later notebooks have nothing to read: push it again until it is done, "
                "or use --follow."
            )

    def _wait(self, address: str) -> None:
        """Until the newest version has ended; UserError if it failed."""
        last = ""
        while (status := self._status(address) or "QUEUED") not in ENDED:
            if status != last:
                self.say(f"{address}: {status.lower()}")
            last = status
            time.sleep(self.poll)
        if status != "COMPLETE":
            raise UserError(
                f"{address} ended as {status.lower()}: read its log on its page; push again, and it goes on from the "
                "last output that it published."
            )

    def _status(self, address: str) -> str | None:
        """The state of the newest version; None where there is no such notebook."""
        from requests import HTTPError

        with _speaking(address):
            try:
                return str(self.api.kernels_status(address).status.name)
            except ValueError:  # how the package says 401 and 403, which Kaggle answers for unknown names too
                return None
            except HTTPError as error:
                if error.response is not None and error.response.status_code == 404:
                    return None
                raise

    def _state(self, address: str) -> str:
        """`done` or `paused`, by the records of the notebook's output. UserError for a stage that failed."""
        with tempfile.TemporaryDirectory() as folder, _speaking(address):
            self.api.kernels_output(address, folder, file_pattern=RECORDS)
            for run in runs_below(Path(folder)):
                for record in (stage_record(run, path.parent.name) for path in sorted(run.glob("*/stage.json"))):
                    if record and record["status"] == "failed":
                        raise UserError(
                            f"{address} has published a failed {record['stage']}: {record.get('error', 'see its log')}"
                        )
                    if record and record["status"] == "paused":
                        return "paused"
        return "done"

    def _download(self, folder: Path, address: str) -> None:
        target = folder / "output"
        with _speaking(address):
            files, _ = self.api.kernels_output(address, str(target), file_pattern=RESULTS, force=True)
        self.say(f"{address}: {len(files)} files in {shown(target)}")

    def _say_quota(self) -> None:
        from requests import RequestException

        try:
            gpu = self.api.quota_view().gpu_quota
        except (RequestException, ValueError):  # no more than a courtesy
            return
        if gpu is not None:
            total, used = gpu.total_time_allowed.total_seconds(), gpu.time_used.total_seconds()
            self.say(f"GPU quota: {max(0.0, total - used) / 3600:.1f} of {total / 3600:.0f} hours left this week")


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


def signed_in() -> Any:
    """A `KaggleApi` with the credentials that the `kaggle` package finds. UserError where there are none."""
    try:
        from kaggle.api.kaggle_api_extended import KaggleApi
    except ImportError:
        raise UserError("The package kaggle is not installed: `pip install kaggle`, then push again.") from None
    api = KaggleApi()
    try:
        api.authenticate()
    except (Exception, SystemExit):
        raise UserError(
            "Kaggle knows nobody by these credentials: create a token under kaggle.com/settings (API), and put it "
            "where the kaggle package looks (~/.kaggle/kaggle.json, or KAGGLE_USERNAME and KAGGLE_KEY)."
        ) from None
    return api


@contextmanager
def _prepared(folder: Path, facts: dict[str, Any], without_own: bool) -> Iterator[Path]:
    """The folder to push; for a first push a copy whose inputs leave the notebook itself out."""
    if not without_own or facts["id"] not in facts["kernel_sources"]:
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        shutil.copy(folder / facts["code_file"], copy)
        sources = [source for source in facts["kernel_sources"] if source != facts["id"]]
        write_json(Path(copy) / METADATA, facts | {"kernel_sources": sources})
        yield Path(copy)


@contextmanager
def _speaking(address: str) -> Iterator[None]:
    """Network and server errors as one sentence."""
    from requests import RequestException

    try:
        yield
    except (RequestException, json.JSONDecodeError) as error:
        first = re.sub(r"\s+", " ", str(error))[:200]
        raise UserError(f"Kaggle cannot be asked about {address} ({first}): check the network and try again.") from None
