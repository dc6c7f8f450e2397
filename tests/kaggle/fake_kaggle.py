"""Kaggle's API on loopback: as much of it as a push needs. Sessions end at the second look at them."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeKaggle(ThreadingHTTPServer):
    """Notebooks by `owner/slug`: their versions as they were pushed, and how their sessions ended.

    `plan` gives for each notebook the status in the note of each session (`done` where the list has ended),
    `nothing` for an output without a note, or `error` for a session that fails. `failing` is how many requests to
    come are answered 503; of `hidden` notebooks nothing can be learned. The next `denied` looks at a notebook are
    answered 403. Downloads of files that end in `broken` are an error's page, `broken_times`. For so many looks as
    `lagging` says, a notebook's version before counts as the newest.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.versions: dict[str, list[dict[str, Any]]] = {}
        self.plan: dict[str, list[str]] = {}
        self.looks: dict[str, int] = {}
        self.log: list[str] = []
        self.down = False
        self.failing = 0
        self.hidden: set[str] = set()
        self.denied = 0
        self.broken = ""
        self.broken_times = 0
        self.lagging: dict[str, int] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def state(self, name: str) -> str:
        """How the newest session of a notebook ended."""
        planned = self.plan.get(name, [])
        number = len(self.versions[name]) - 1 - (name in self.lagging)
        return planned[number] if number < len(planned) else "done"

    def files(self, name: str) -> dict[str, str]:
        """The output of a notebook's newest version."""
        status, number = self.state(name), len(self.versions[name]) - (name in self.lagging)
        note = {"schema": 1, "status": status, "time": number} | ({"error": "it broke"} if status == "failed" else {})
        found = {
            "runs/mine/run.json": json.dumps({"schema": 1, "name": "mine"}),
            "runs/mine/session.json": json.dumps(note),
            "runs/mine/train/checkpoints/step-000001/weights": "large",
            "runs/mine/train/final/model.safetensors": "weights",
        }
        if status == "nothing":
            del found["runs/mine/session.json"]
        return found


class _Handler(BaseHTTPRequestHandler):
    server: FakeKaggle

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        call = self.path.rsplit("/", 1)[1]
        self.server.failing -= self.server.failing > 0
        if self.server.down or self.server.failing:
            self._json({"code": 503, "message": "try later"}, 503)
        else:
            getattr(self, f"_{call}")(given)

    def do_GET(self) -> None:
        _, _, owner, slug, name = self.path.split("/", 4)
        if self.server.broken and name.endswith(self.server.broken) and self.server.broken_times:
            self.server.broken_times -= 1
            self._send(b"<Error>SlowDown</Error>", "text/xml", 503)
            return
        self._send(self.server.files(f"{owner}/{slug}")[name].encode(), "application/octet-stream")

    def _SaveKernel(self, given: dict[str, Any]) -> None:
        kaggle, name = self.server, given["slug"]
        unknown = [source for source in given.get("kernelDataSources", []) if source not in kaggle.versions]
        kaggle.versions.setdefault(name, []).append(given)
        kaggle.looks[name] = 0
        kaggle.log.append(f"push {name}")
        number = len(kaggle.versions[name])
        self._json({"versionNumber": number, "url": f"{kaggle.url}/{name}", "invalidKernelSources": unknown})

    def _GetKernelSessionStatus(self, given: dict[str, Any]) -> None:
        name = f"{given['userName']}/{given['kernelSlug']}"
        if self.server.denied:
            self.server.denied -= 1
            self._json({"code": 403, "message": "Permission 'kernels.get' was denied"}, 403)
            return
        if name not in self.server.versions or name in self.server.hidden:
            self._json({"code": 403, "message": "Permission 'kernels.get' was denied"}, 403)
            return
        if self.server.lagging.get(name):
            self.server.lagging[name] -= 1
            self._json({"status": "COMPLETE"})
            return
        if self.server.lagging.pop(name, None) is not None:
            self.server.looks[name] = 1
        self.server.looks[name] += 1
        ended = "ERROR" if self.server.state(name) == "error" else "COMPLETE"
        self._json({"status": ended if self.server.looks[name] > 1 else "RUNNING"})

    def _ListKernelSessionOutput(self, given: dict[str, Any]) -> None:
        name = f"{given['userName']}/{given['kernelSlug']}"
        self.server.log.append(f"output {name}")
        files = [{"url": f"{self.server.url}/file/{name}/{file}", "fileName": file} for file in self.server.files(name)]
        self._json({"files": files, "log": ""})

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, data: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(data)
