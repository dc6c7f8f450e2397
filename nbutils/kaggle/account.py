"""An account on Kaggle: the requests that a push makes, asked again while network or server are in trouble.

Pushes go through `KaggleApi.kernels_push`, which checks the metadata; what is asked goes to the same package's client
(kaggle 2.2): `kernels_output` downloads without a time limit, and writes an error's page into the file.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

import requests
from urllib3.exceptions import NewConnectionError

from nbutils.core.errors import UserError
from nbutils.core.files import replaced, write_text
from nbutils.core.text import first_line

PATIENCE_SECONDS = 1800.0
"""For how long a request is repeated: a push is followed for days, and a router restarts in minutes."""
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 300.0
"""Seconds between two tries, at first and at most; each pause is twice as long as the one before."""
DOWNLOAD_SECONDS = 60.0
"""Without a byte of a file that is downloaded."""
PASSING = (None, 408, 425, 429, 500, 502, 503, 504)
"""Answers of a server that may be another one soon; None for no answer."""
DENIED = (401, 403)
"""Kaggle's answers for unknown names too, and in a bad moment for what was there just now."""
NEW = "NEW_SCRIPT"
"""The status of a notebook that was never run."""
T = TypeVar("T")


class Account:
    """An authenticated `KaggleApi`."""

    def __init__(self, api: Any) -> None:
        from kagglesdk.kernels.types import kernels_api_service  # of the package kaggle, which may be absent

        self.api = api
        self.requests = kernels_api_service

    def status(self, address: str) -> str | None:
        """The state of the newest version; None where there is no such notebook, or none that was ever run."""

        def ask() -> str | None:
            try:
                request = self.requests.ApiGetKernelSessionStatusRequest()
                name = str(self._asked("get_kernel_session_status", request, address).status.name)
            except requests.HTTPError as error:
                if _answer(error) in (*DENIED, 404):
                    return None
                raise
            return None if name == NEW else name

        return self._patiently(address, ask, _passes)

    def push(self, address: str, folder: Path) -> Any:
        """Pushes a folder, and returns Kaggle's answer. Repeated only where it surely did not arrive."""
        return self._patiently(address, lambda: self.api.kernels_push(str(folder)), _never_arrived)

    def output(self, address: str, target: Path, pattern: str) -> int:
        """Downloads the newest version's files whose names match, and its log; returns how many."""

        def ask() -> int:
            request, files, log = self.requests.ApiListKernelSessionOutputRequest(), dict[str, str](), ""
            while True:
                answer = self._asked("list_kernel_session_output", request, address)
                log = log or answer.log or ""
                files |= {file.file_name: file.url for file in answer.files or []}
                if not answer.next_page_token:
                    break
                request.page_token = answer.next_page_token
            chosen = [name for name in files if re.search(pattern, name)]
            for name in chosen:
                _download(files[name], target / name)
            if log:
                write_text(target / f"{address.partition('/')[2]}.log", log)
            return len(chosen) + bool(log)

        return self._patiently(address, ask, lambda error: _passes(error) or _answer(error) in DENIED)

    def _asked(self, call: str, request: Any, address: str) -> Any:
        request.user_name, request.kernel_slug = address.split("/")
        with self.api.build_kaggle_client() as client:
            return getattr(client.kernels.kernels_api_client, call)(request)

    def _patiently(self, address: str, ask: Callable[[], T], passes: Callable[[Exception], bool]) -> T:
        """The answer to a request; UserError where it fails for good, or for longer than there is patience."""
        began, pause = time.monotonic(), FIRST_PAUSE
        while True:
            try:
                return ask()
            except (ValueError, OSError) as error:  # RequestException is an OSError
                words = first_line(error)
                left = PATIENCE_SECONDS - (time.monotonic() - began)
                if not passes(error) or left <= 0:
                    if isinstance(error, OSError):
                        raise UserError(
                            f"Kaggle cannot be asked about {address} ({words}): check the network, and that "
                            "these credentials are of the user who owns it; then try again."
                        ) from None
                    raise UserError(
                        f"The kaggle package refuses {address} ({words}): mend its kernel-metadata.json."
                    ) from None
                if pause == FIRST_PAUSE:
                    print(f"{address}: Kaggle does not answer ({words}); trying again.")
                time.sleep(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE)


def signed_in() -> Any:
    """A `KaggleApi` with the credentials that the `kaggle` package finds. UserError where there are none."""
    try:
        from kaggle.api.kaggle_api_extended import KaggleApi
    except ImportError:
        raise UserError("The package kaggle is not installed: `pip install kaggle`, then push again.") from None
    api = KaggleApi()
    try:
        with redirect_stdout(io.StringIO()):  # it would print its own help, of several screens
            api.authenticate()
    except (Exception, SystemExit):
        raise UserError(
            "Kaggle knows nobody by these credentials: create a token under kaggle.com/settings (API), and put it "
            "into ~/.kaggle/access_token or KAGGLE_API_TOKEN (a legacy key: ~/.kaggle/kaggle.json, or KAGGLE_USERNAME "
            "and KAGGLE_KEY)."
        ) from None
    return api


def _download(url: str, path: Path) -> None:
    with requests.get(url, stream=True, timeout=DOWNLOAD_SECONDS) as response:
        response.raise_for_status()
        with replaced(path) as partial, partial.open("wb") as file:
            file.writelines(response.iter_content(2**20))


def _answer(error: Exception) -> int | None:
    """The status of the answer that an error is about; None for no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _passes(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    return isinstance(error, requests.RequestException) and _answer(error) in PASSING


def _never_arrived(error: Exception) -> bool:
    """Whether a request surely was not taken: a second version of a notebook costs a second session."""
    unheard = isinstance(getattr(error.args[0], "reason", None), NewConnectionError) if error.args else False
    return unheard or isinstance(error, requests.ConnectTimeout) or _answer(error) in (429, 503)
