"""The Hub on loopback, to send to and to read from: the fake one of publishing, with downloads."""

import re
import threading
from urllib.parse import unquote

from tests.data.fake_hub import Reading
from tests.publish import fake_hub

TOKEN = "hf_" + "not-a-real-one-but-long-enough"
REPO = "me/mirror"


class MirrorHub(fake_hub.FakeHub):
    """As `FakeHub`, and its files can be read again; large ones are taken only when `open` is set.

    `broken`: how many times what has this text in its address cannot be read.
    """

    def __init__(self):
        super().__init__()
        self.broken = ("", 0)
        self.asked, self.open = threading.Event(), threading.Event()
        self.open.set()
        self.RequestHandlerClass = _Handler

    def names(self) -> list[str]:
        """Files of the mirror, none where it does not exist."""
        return sorted(self.repos.get(REPO, {"files": {}})["files"])


class _Handler(Reading):
    def do_PUT(self):
        self.server.asked.set()
        self.server.open.wait(300)
        super().do_PUT()

    def do_GET(self):
        repo, (text, times) = self._repo(), self.server.broken
        file = re.search(r"/resolve/\w+/([^?]+)", unquote(self.path))
        if times and text in self.path:
            self.server.broken = text, times - 1
            self._answer(403, b"", {})  # the client asks again and again after a 500
        elif repo is None:
            self._missing("Repo")
        elif file:
            self._file(self.server.repos[repo]["files"][file[1]], "0" * 40)
        else:
            fake_hub._Handler.do_GET(self)
