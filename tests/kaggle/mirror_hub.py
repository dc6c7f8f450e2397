"""The Hub on loopback, to send to and to read from: the fake one of publishing, with downloads."""

from __future__ import annotations

import hashlib
import re
import threading
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.publish import fake_hub

_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)")


class MirrorHub(fake_hub.FakeHub):
    """As `FakeHub`, and its files can be read again; large ones are taken only when `open` is set.

    `broken`: "files" cannot be read, or "all" that is asked for, or what is asked for "once".
    """

    def __init__(self) -> None:
        super().__init__()
        self.broken = ""
        self.asked, self.open = threading.Event(), threading.Event()
        self.open.set()
        self.RequestHandlerClass = _Handler

    def names(self, repo: str) -> list[str]:
        """Files of a repository, none where it does not exist."""
        return sorted(self.repos.get(repo, {"files": {}})["files"])


class _Handler(fake_hub._Handler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.server.asked.set()
        self.server.open.wait(300)
        super().do_PUT()

    def do_GET(self) -> None:
        found = _FILE.fullmatch(unquote(urlsplit(self.path).path))
        if self.server.broken and (found or self.server.broken != "files"):
            self._note()
            if self.server.broken == "once":
                self.server.broken = ""
            self._answer(403, b"", {})  # the client asks again and again after a 500
            return
        if not found and self._repo():
            super().do_GET()
            return
        self._note()
        if not found:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        data = self.server.repos.get(found[1], {"files": {}})["files"].get(found[2])
        if data is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            self._answer(200, data, {"ETag": etag, "X-Repo-Commit": "0" * 40})

    def _answer(self, status: int, data: bytes, headers: dict[str, Any]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": len(data)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
