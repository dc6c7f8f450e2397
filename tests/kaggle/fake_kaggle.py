"""Kaggle's API on loopback: as much of it as a push needs. Sessions end at the second look at them."""

import json
from collections import Counter, defaultdict

from tests.publish import fake_hub

ALWAYS = 10**6


class FakeKaggle(fake_hub.FakeHub):
    """One user's notebooks by their slugs: their versions as they were pushed, and how their sessions ended.

    `plan` gives for each notebook the status in the note of each session (`done` where the list has ended),
    `nothing` for an output without a note, or `error` for a session that fails. What else can be set:
    `failing`: how often a kind of request, or the download of a file of that name, is answered 503. `denied`: looks at
    a notebook that are answered 403. `unknown`: inputs that it does not know. `lag`: looks after a push for which the
    version before counts as the newest.
    """

    def __init__(self):
        super().__init__()
        self.RequestHandlerClass = _Handler
        self.pushed = []
        self.versions = defaultdict(list)
        self.plan = {}
        self.looks, self.failing, self.denied = Counter(), Counter(), Counter()
        self.unknown = []
        self.lag = 0

    def newest(self, name):
        """The number of the version that counts as a notebook's newest."""
        number = len(self.versions[name])
        return number - 1 if number > 1 and self.looks[name] <= self.lag else number

    def state(self, name):
        """How that version's session ended."""
        return dict(enumerate(self.plan.get(name, []), 1)).get(self.newest(name), "done")

    def files(self, name):
        """The output of a notebook's newest version."""
        status, training = self.state(name), "runs/mine/train"
        note = {"schema": 1, "status": status, "time": self.newest(name), "error": "it broke"}
        files = {f"{training}/checkpoints/step-000001/weights": "large", f"{training}/final/model": "weights"}
        return files if status == "nothing" else files | {"runs/mine/session.json": note}

    # Its API: of a notebook and what is sent, the answer; None where it is denied

    def SaveKernel(self, name, given):
        self.pushed.append(name)
        self.versions[name].append(given)
        self.looks[name] = 0
        number = len(self.versions[name])
        return {"versionNumber": number, "url": f"{self.url}/{name}", "invalidKernelSources": self.unknown}

    def GetKernelSessionStatus(self, name, _):
        denied = self.denied[name] > 0
        self.denied[name] -= denied
        if denied or name not in self.versions:
            return None
        self.looks[name] += 1
        lagging = self.newest(name) < len(self.versions[name])
        running = not lagging and self.looks[name] < self.lag + 2
        return {"status": "RUNNING" if running else "ERROR" if self.state(name) == "error" else "COMPLETE"}

    def ListKernelSessionOutput(self, name, _):
        files = [{"url": f"{self.url}/{name}/{file}", "fileName": file} for file in self.files(name)]
        return {"files": files, "log": ""}


class _Handler(fake_hub._Handler):
    def do_POST(self):
        given = json.loads(self._note())
        call = self.path.rpartition("/")[2]
        name = given["slug"].partition("/")[2] if "slug" in given else given["kernelSlug"]
        self._answer(call, lambda: getattr(self.server, call)(name, given))

    def do_GET(self):
        _, name, file = self.path.split("/", 2)
        self._answer(file.rpartition("/")[2], lambda: self.server.files(name)[file])

    def _answer(self, asked, answer):
        """Sends what is called for, unless that kind of request fails."""
        if self.server.failing[asked]:
            self.server.failing[asked] -= 1
            self._json({"code": 503, "message": "503 try later"}, 503)
        elif found := answer():
            self._json(found)
        else:
            self._json({"code": 403, "message": "denied"}, 403)
