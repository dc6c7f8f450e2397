"""The Hub on loopback, to send to and to read from: the fake one of publishing, with downloads."""

from __future__ import annotations

import threading
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.publish import fake_hub

TOKEN = "hf_" + "not-a-real-one-but-long-enough"
REPO = "me/mirror"


class MirrorHub(fake_hub.FakeHub):
    """As `FakeHub`, and its files can be read again; large ones are taken only when `open` is set.

    `broken`: how many times what has this text in its address cannot be read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.broken = ("", 0)
        self.asked, self.open = threading.Event(), threading.Event()
        self.open.set()
        self.RequestHandlerClass = _Handler

    def names(self) -> list[str]:
        """Files of the mirror, none where it does not exist."""
        return sorted(self.repos.get(REPO, {"files": {}})["files"])


class _Handler(fake_hub._Handler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.server.asked.set()
        self.server.open.wait(300)
        super().do_PUT()

    def do_GET(self) -> None:
        repo = self._repo()
        _, _, revision_and_file = unquote(urlsplit(self.path).path).partition("/resolve/")
        _, _, file = revision_and_file.partition("/")
        text, times = self.server.broken
        if times and text in self.path:
            self.server.broken = text, times - 1
            self._answer(403, {})  # the client asks again and again after a 500
        elif repo is None:
            self._answer(404, {"X-Error-Code": "RepoNotFound"})
        elif file:
            self._answer(200, {"ETag": '"0"', "X-Repo-Commit": "0" * 40}, self.server.repos[repo]["files"][file])
        else:
            super().do_GET()

    def _answer(self, status: int, headers: dict[str, Any], data: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": len(data)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
