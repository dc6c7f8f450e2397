"""A pseudo-terminal, and the programs that tests start on it: forks of one Python that has the libraries loaded."""

from __future__ import annotations

import multiprocessing
import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable

from nbutils.chat.session import ChatSession
from nbutils.chat.terminal import talk
from tests.chat.models import TOKENIZER, ScriptedModel

REPLIES = ["first \x1b[31mreply 🌙", "slowly " * 100, "after the stop", "again", "last"]
LIBRARIES = multiprocessing.get_context("forkserver")
LIBRARIES.set_forkserver_preload(["tests.chat.talking"])


def slow_talk() -> int:
    """Talks on this terminal with a slow model whose replies are written here."""
    model = ScriptedModel(TOKENIZER, REPLIES, 0.02)
    session = ChatSession(model, TOKENIZER, read_ahead=False, max_new_tokens=500)
    return talk(session, interactive=sys.stdin.isatty())


class Terminal:
    """A pseudo-terminal with a program on it: a function that gives the exit status."""

    def __init__(self, program: Callable[..., int], *arguments: object) -> None:
        self.file, self.other_end = pty.openpty()
        name = os.ttyname(self.other_end)
        self.process = LIBRARIES.Process(target=_on_terminal, args=(name, program, arguments))
        self.process.start()
        self.seen = ""

    def type(self, text: str) -> None:
        """What the keyboard sends."""
        os.write(self.file, text.encode())

    def wait_for(self, *texts: str) -> str:
        """Reads until these appear, one after the other; what came before the last one."""
        before, end = "", time.monotonic() + 60
        for text in texts:
            while text not in self.seen:
                assert self.process.is_alive() and time.monotonic() < end, f"{text!r} did not come, but {self.seen!r}"
                if select.select([self.file], [], [], 0.1)[0]:
                    self.seen += os.read(self.file, 4096).decode(errors="replace")
            before, _, self.seen = self.seen.partition(text)
        return before

    def status(self) -> int | None:
        """The exit status, once the program has ended."""
        self.process.join(30)
        return self.process.exitcode

    def close(self) -> None:
        """Ends the program if it still runs."""
        self.process.kill()
        self.process.join()
        os.close(self.file)
        os.close(self.other_end)


def _on_terminal(name: str, program: Callable[..., int], arguments: tuple[object, ...]) -> None:
    """What the fork does: the terminal becomes its own, as of a program that a shell starts."""
    os.login_tty(os.open(name, os.O_RDWR))
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))  # noqa: SIM115
    os.environ |= {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}  # which asks nobody where the cursor is
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup make test` ignores it
    sys.exit(program(*arguments))
