"""The hub on loopback: as much of its protocol as reading takes, answering as huggingface.co did when looked up."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

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

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        found = _API.fullmatch(unquote(urlsplit(self.path).path))
        if not found or found[3] != "paths-info":
            self._json({"error": "not found"}, 404)
            return
        kind, name = found[1], found[2]
        asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
        entries = {entry["path"]: entry for entry in self._entries(kind, name, "", recursive=True)}
        self._json([entries[path] for path in asked if path in entries])

    def _api(self, kind: str, name: str, call: str | None, revision: str | None, path: str | None) -> None:
        files = self.server.repos.get((kind, name))
        if files is None:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        commit = self.server.commit(kind, name)
        if revision not in (None, "main", commit):
            self._json({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        elif call == "tree":
            recursive = "recursive=true" in self.path.lower()
            self._json(self._entries(kind, name, path or "", recursive=recursive))
        else:
            siblings = [{"rfilename": file, "size": len(data)} for file, data in files.items()]
            self._json({"id": name, "modelId": name, "sha": commit, "private": False, "siblings": siblings, "tags": []})

    def _entries(self, kind: str, name: str, below: str, *, recursive: bool) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        prefix = f"{below}/" if below else ""
        for file, data in self.server.repos[kind, name].items():
            if not file.startswith(prefix):
                continue
            parts = file[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                folder = prefix + "/".join(parts[:depth])
                if recursive or depth == 1:
                    found[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            if recursive or len(parts) == 1:
                oid = hashlib.sha1(data).hexdigest()
                found[file] = {"type": "file", "path": file, "oid": oid, "size": len(data)}
        return list(found.values())

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
