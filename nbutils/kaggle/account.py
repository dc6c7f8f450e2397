"""An account on Kaggle: the requests that a push makes, asked again while network or server are in trouble.

Requests go through the `kaggle` package (2.2: `KaggleApi.kernels_push`, `kernels_status`, `kernels_output`,
`quota_view`).
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

from nbutils.core.errors import UserError

PATIENCE_SECONDS = 1800.0
"""For how long a request is repeated: a push is followed for days, and a router restarts in minutes."""
LONGEST_PAUSE = 300.0
"""Seconds between two tries, at most; the first pause is that between two looks, each later one twice as long."""
DOWNLOAD_SECONDS = 60.0
"""Without a byte of a file that is downloaded."""
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers of a server that may be another one soon."""
NEW = "NEW_SCRIPT"
"""The status of a notebook that was never run."""
T = TypeVar("T")


class Account:
    """An authenticated `KaggleApi` that has `patience` seconds for each request."""

    def __init__(self, api: Any, pause: float, patience: float, say: Callable[[str], None]) -> None:
        self.api = api
        self.pause = pause
        self.patience = patience
        self.say = say

    def status(self, address: str) -> str | None:
        """The state of the newest version; None where there is no such notebook, or none that was ever run."""
        from requests import HTTPError

        def ask() -> str | None:
            try:
                name = str(self.api.kernels_status(address).status.name)
            except json.JSONDecodeError:
                raise
            except ValueError:  # how the package says 401 and 403, which Kaggle answers for unknown names too
                return None
            except HTTPError as error:
                if error.response is not None and error.response.status_code == 404:
                    return None
                raise
            return None if name == NEW else name

        return self._patiently(address, ask, _passes)

    def push(self, address: str, folder: Path) -> Any:
        """Pushes a folder, and returns Kaggle's answer. Repeated only where it surely did not arrive."""
        return self._patiently(address, lambda: self.api.kernels_push(str(folder)), _never_arrived)

    def output(self, address: str, target: Path, pattern: str) -> int:
        """Downloads the newest version's files whose names match; returns how many."""

        def ask() -> int:
            with _checked_downloads():
                return len(self.api.kernels_output(address, str(target), file_pattern=pattern, force=True)[0])

        return self._patiently(address, ask, lambda error: _passes(error) or _denied(error))

    def gpu_hours(self) -> tuple[float, float] | None:
        """GPU-hours left this week, and given; None where Kaggle does not say."""
        from requests import RequestException

        try:
            gpu = self.api.quota_view().gpu_quota
        except (RequestException, ValueError):  # no more than a courtesy
            return None
        if gpu is None:
            return None
        total, used = gpu.total_time_allowed.total_seconds(), gpu.time_used.total_seconds()
        return max(0.0, total - used) / 3600, total / 3600

    def _patiently(self, address: str, ask: Callable[[], T], passes: Callable[[Exception], bool]) -> T:
        """The answer to a request; UserError where it fails for good, or for longer than there is patience."""
        from requests import RequestException

        began, pause = time.monotonic(), self.pause
        while True:
            try:
                return ask()
            except (RequestException, ValueError, OSError) as error:
                left = self.patience - (time.monotonic() - began)
                if not passes(error) or left <= 0:
                    raise _sentence(address, error) from None
                if pause == self.pause:
                    self.say(f"{address}: Kaggle does not answer ({_words(error)}); trying again.")
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


@contextmanager
def _checked_downloads() -> Iterator[None]:
    """For the package's downloads (2.2), which have no time limit and write an error's page into the file."""
    from kaggle.api import kaggle_api_extended as package

    get = package.requests.get

    def checked(url: str, **options: Any) -> Any:
        response = get(url, timeout=DOWNLOAD_SECONDS, **options)
        response.raise_for_status()
        return response

    package.requests.get = checked
    try:
        yield
    finally:
        package.requests.get = get


def _denied(error: Exception) -> bool:
    """Whether the package says that Kaggle answered 401 or 403: for a bad moment, too, of what was there just now."""
    return isinstance(error, ValueError) and "Cannot access" in str(error)


def _passes(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    from requests import ConnectionError, HTTPError, Timeout
    from requests.exceptions import ChunkedEncodingError

    if isinstance(error, HTTPError):
        return error.response is None or error.response.status_code in PASSING
    return isinstance(error, ConnectionError | Timeout | ChunkedEncodingError | json.JSONDecodeError)


def _never_arrived(error: Exception) -> bool:
    """Whether a request surely was not taken: a second version of a notebook costs a second session."""
    from requests import ConnectionError, ConnectTimeout, HTTPError

    if isinstance(error, HTTPError):
        return error.response is not None and error.response.status_code in (429, 503)
    unheard = ("NewConnectionError", "NameResolutionError")
    return isinstance(error, ConnectTimeout) or (
        isinstance(error, ConnectionError) and any(word in repr(error) for word in unheard)
    )


def _sentence(address: str, error: Exception) -> UserError:
    response = getattr(error, "response", None)
    if _denied(error) or (response is not None and response.status_code in (401, 403)):
        return UserError(
            f"Kaggle lets these credentials do nothing with {address}: check that they are of the user who owns it."
        )
    if isinstance(error, ValueError) and not _passes(error):
        return UserError(f"The kaggle package refuses {address} ({_words(error)}): mend its kernel-metadata.json.")
    return UserError(f"Kaggle cannot be asked about {address} ({_words(error)}): check the network and try again.")


def _words(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
