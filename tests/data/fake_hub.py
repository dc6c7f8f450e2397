"""The hub on loopback: as much of its protocol as reading takes, answering as huggingface.co did when looked up."""

import hashlib
import re
from pathlib import PurePath
from urllib.parse import unquote, urlsplit

from tests.publish import fake_hub

_PATH = re.compile(r"/(?:api/)?(?:(models|datasets)/)?([^/]+/[^/]+?)(?:/(revision|tree|resolve)/([^/]+)(?:/(.+))?)?")


def commit(name: str) -> str:
    """The one commit of a repository."""
    return _sha1(name.encode())


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class Reading(fake_hub._Handler):
    """Answers from the server's `repos`: (`models` or `datasets`, id) → file → bytes."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self._note()
        found = _PATH.fullmatch(unquote(urlsplit(self.path).path))  # not of `/`, whether the hub answers at all
        kind, name, call, revision, file = found.groups() if found else [""] * 5
        files = self.server.repos.get((kind or "models", name), {})
        if not files:
            self._missing("Repo")
        elif revision not in (None, "main", commit(name)):
            self._missing("Revision")
        elif call == "resolve" and file not in files:
            self._missing("Entry")
        elif call == "resolve":
            self._file(files[file], commit(name))
        elif call == "tree":
            folders = {str(folder) for name in files for folder in PurePath(name).parents if folder.name}
            entries = [(name, "directory", b"") for name in folders] + [(name, "file", files[name]) for name in files]
            self._json([{"type": t, "path": name, "oid": _sha1(data), "size": len(data)} for name, t, data in entries])
        else:
            self._json({"id": name, "sha": commit(name), "siblings": [{"rfilename": file} for file in files]})

    def _file(self, data: bytes, commit: str):
        headers = {"ETag": f'"{_sha1(data)}"', "X-Repo-Commit": commit}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self._answer(206, data[first : last + 1], headers)
        else:
            self._answer(200, data, headers)

    def _missing(self, what: str):
        self._answer(404, b"{}", {"X-Error-Code": f"{what}NotFound"})

    def _answer(self, status: int, data: bytes, headers: dict):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
