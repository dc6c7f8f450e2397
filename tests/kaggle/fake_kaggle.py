"""Kaggle's API on loopback: as much of it as a push needs. Sessions end at the second look at them."""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ALWAYS = 10**6
Answer = dict[str, Any]


class FakeKaggle(ThreadingHTTPServer):
    """One user's notebooks by their slugs: their versions as they were pushed, and how their sessions ended.

    `plan` gives for each notebook the status in the note of each session (`done` where the list has ended),
    `nothing` for an output without a note, or `error` for a session that fails. What else can be set:
    `failing`: how often a kind of request, or the download of a file of that name, is answered 503. `denied`: looks at
    a notebook that are answered 403. `unknown`: inputs that it does not know. `lag`: looks after a push for which the
    version before counts as the newest.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.pushed: list[str] = []
        self.versions: dict[str, list[Answer]] = defaultdict(list)
        self.plan: dict[str, list[str]] = {}
        self.looks, self.failing, self.denied = Counter[str](), Counter[str](), Counter[str]()
        self.unknown: list[str] = []
        self.lag = 0
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
        status, training = self.state(name), "runs/mine/train"
        note = {"schema": 1, "status": status, "time": self.newest(name), "error": "it broke"}
        files = {f"{training}/checkpoints/step-000001/weights": "large", f"{training}/final/model": "weights"}
        return files if status == "nothing" else files | {"runs/mine/session.json": json.dumps(note)}


class _Handler(BaseHTTPRequestHandler):
    server: FakeKaggle

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        call = self.path.rpartition("/")[2]
        name = given["slug"].partition("/")[2] if "slug" in given else given["kernelSlug"]
        if not self._fails(call):
            answer = getattr(self, f"_{call}")(name, given)
            self._send(json.dumps(answer or {"code": 403, "message": "denied"}), 200 if answer else 403)

    def do_GET(self) -> None:
        _, name, file = self.path.split("/", 2)
        if not self._fails(file.rpartition("/")[2]):
            self._send(self.server.files(name)[file])

    def _fails(self, asked: str) -> bool:
        failing = self.server.failing[asked] > 0
        if failing:
            self.server.failing[asked] -= 1
            self._send(json.dumps({"code": 503, "message": "503 try later"}), 503)
        return failing

    def _SaveKernel(self, name: str, given: Answer) -> Answer:
        kaggle = self.server
        kaggle.pushed.append(name)
        kaggle.versions[name].append(given)
        kaggle.looks[name] = 0
        number = len(kaggle.versions[name])
        return {"versionNumber": number, "url": f"{kaggle.url}/{name}", "invalidKernelSources": kaggle.unknown}

    def _GetKernelSessionStatus(self, name: str, _: Answer) -> Answer | None:
        kaggle = self.server
        denied = kaggle.denied[name] > 0
        kaggle.denied[name] -= denied
        if denied or name not in kaggle.versions:
            return None
        kaggle.looks[name] += 1
        lagging = kaggle.newest(name) < len(kaggle.versions[name])
        running = not lagging and kaggle.looks[name] < kaggle.lag + 2
        return {"status": "RUNNING" if running else "ERROR" if kaggle.state(name) == "error" else "COMPLETE"}

    def _ListKernelSessionOutput(self, name: str, _: Answer) -> Answer:
        kaggle = self.server
        files = [{"url": f"{kaggle.url}/{name}/{file}", "fileName": file} for file in kaggle.files(name)]
        return {"files": files, "log": ""}

    def _send(self, text: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
