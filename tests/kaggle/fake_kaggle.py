"""Kaggle's API on loopback: as much of it as a push needs. Sessions end at the second look at them."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ALWAYS = 10**6


class FakeKaggle(ThreadingHTTPServer):
    """Notebooks by `owner/slug`: their versions as they were pushed, and how their sessions ended.

    `plan` gives for each notebook the status in the note of each session (`done` where the list has ended),
    `nothing` for an output without a note, or `error` for a session that fails. What else can be set:
    `failing`: requests to come that are answered 503. `denied`: looks at a notebook that are answered 403; and
    `denied_after_output`: looks between its output and its next version. `broken`: downloads, by the file's name, that
    are an error's page. `vanished`: notebooks that are known, but not as inputs. `lag`: looks after a push for which
    the version before counts as the newest.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.versions: dict[str, list[dict[str, Any]]] = {}
        self.plan: dict[str, list[str]] = {}
        self.looks: dict[str, int] = {}
        self.failing = 0
        self.denied, self.broken = Counter[str](), Counter[str]()
        self.denied_after_output: set[str] = set()
        self.vanished: set[str] = set()
        self.lag = 0
        self.pushed: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def newest(self, name: str) -> int:
        """The number of the version that counts as a notebook's newest."""
        number = len(self.versions[name])
        return number - 1 if number > 1 and self.looks[name] <= self.lag else number

    def state(self, name: str) -> str:
        """How that version's session ended."""
        return dict(enumerate(self.plan.get(name, []), 1)).get(self.newest(name), "done")

    def files(self, name: str) -> dict[str, str]:
        """The output of a notebook's newest version."""
        status = self.state(name)
        note = {"schema": 1, "status": status, "time": self.newest(name)}
        note |= {"error": "it broke"} if status == "failed" else {}
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
        name = given["slug"] if "slug" in given else f"{given['userName']}/{given['kernelSlug']}"
        if self.server.failing:
            self.server.failing -= 1
            self._json({"code": 503, "message": "try later"}, 503)
        else:
            getattr(self, f"_{call}")(name, given)

    def do_GET(self) -> None:
        _, _, owner, slug, name = self.path.split("/", 4)
        file = name.rpartition("/")[2]
        if self.server.broken[file]:
            self.server.broken[file] -= 1
            self._send(b"<Error>SlowDown</Error>", "text/xml", 503)
        else:
            self._send(self.server.files(f"{owner}/{slug}")[name].encode(), "application/octet-stream")

    def _SaveKernel(self, name: str, given: dict[str, Any]) -> None:
        kaggle = self.server
        known = kaggle.versions.keys() - kaggle.vanished
        unknown = [source for source in given.get("kernelDataSources", []) if source not in known]
        kaggle.versions.setdefault(name, []).append(given)
        kaggle.looks[name] = kaggle.denied[name] = 0
        kaggle.pushed.append(name)
        number = len(kaggle.versions[name])
        self._json({"versionNumber": number, "url": f"{kaggle.url}/{name}", "invalidKernelSources": unknown})

    def _GetKernelSessionStatus(self, name: str, _: dict[str, Any]) -> None:
        kaggle = self.server
        denied = kaggle.denied[name] > 0
        kaggle.denied[name] -= denied
        if denied or name not in kaggle.versions:
            self._json({"code": 403, "message": "Permission 'kernels.get' was denied"}, 403)
            return
        kaggle.looks[name] += 1
        lagging = kaggle.newest(name) < len(kaggle.versions[name])
        running = not lagging and kaggle.looks[name] < kaggle.lag + 2
        ended = "ERROR" if kaggle.state(name) == "error" else "COMPLETE"
        self._json({"status": "RUNNING" if running else ended})

    def _ListKernelSessionOutput(self, name: str, _: dict[str, Any]) -> None:
        kaggle = self.server
        if name in kaggle.denied_after_output:
            kaggle.denied[name] = ALWAYS
        files = [{"url": f"{kaggle.url}/file/{name}/{file}", "fileName": file} for file in kaggle.files(name)]
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
