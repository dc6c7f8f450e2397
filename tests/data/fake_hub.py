"""The hub on loopback: as much of its protocol as reading takes, answering as huggingface.co did when looked up."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote, urlsplit

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class FakeHub(ThreadingHTTPServer):
    """Repositories as (`models` or `datasets`, id) → file → bytes; every path that was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[tuple[str, str], dict[str, bytes]] = {}
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def commit(self, kind: str, name: str) -> str:
        """A commit that depends on all files."""
        files = sorted(self.repos[kind, name].items())
        return hashlib.sha1(repr(files).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if found := _API.fullmatch(path):
            self._api(*found.groups())
        elif found := _FILE.fullmatch(path):
            kind, name, _, file = found.groups()
            self._file(kind or "models", name, file)
        else:
            self._json({"error": "not found"}, 404)

    def _api(self, kind: str, name: str, call: str | None, revision: str | None, path: str | None) -> None:
        files = self.server.repos.get((kind, name))
        if files is None:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        commit = self.server.commit(kind, name)
        if revision not in (None, "main", commit):
            self._json({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        elif call == "tree":
            below = f"{path}/" if path else ""
            depth = 99 if "recursive=true" in self.path.lower() else below.count("/")
            folders = {str(folder): None for file in files for folder in PurePath(file).parents if folder.name}
            found = [name for name in (*folders, *files) if name.startswith(below) and name.count("/") <= depth]
            self._json([self._entry(name, files.get(name)) for name in found])
        else:
            siblings = [{"rfilename": file, "size": len(data)} for file, data in files.items()]
            self._json({"id": name, "modelId": name, "sha": commit, "private": False, "siblings": siblings, "tags": []})

    def _entry(self, name: str, data: bytes | None) -> dict[str, Any]:
        kind, data = ("directory", b"") if data is None else ("file", data)
        return {"type": kind, "path": name, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}

    def _file(self, kind: str, name: str, file: str) -> None:
        data = self.server.repos.get((kind, name), {}).get(file)
        if data is None:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
            "X-Repo-Commit": self.server.commit(kind, name),
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, stop = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{stop}/{len(data)}"
            self._answer(data[start : stop + 1], 206, headers)
        else:
            self._answer(data, 200, headers)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._answer(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _answer(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
