"""A pseudo-terminal, and the programs that tests start on it: forks of one Python that has the libraries loaded."""

import faulthandler
import multiprocessing
import os
import pty
import signal
import sys
from collections.abc import Callable

from pexpect import TIMEOUT
from pexpect.fdpexpect import fdspawn

from nbutils.chat.terminal import talk
from tests.chat.models import scripted_session

REPLIES = ["first \x1b[31mreply 🌙", "slowly " * 100, "after the stop", "again", "last"]
LIBRARIES = multiprocessing.get_context("forkserver")
LIBRARIES.set_forkserver_preload(["tests.chat.talking"])


def slow_talk() -> int:
    """Talks on this terminal with a slow model whose replies are written here."""
    session = scripted_session(*REPLIES, seconds=0.02, max_new_tokens=500)
    return talk(session, interactive=sys.stdin.isatty())


class Terminal(fdspawn):
    """A pseudo-terminal with a program on it: a function that gives the exit status.

    `send` types; `before` is what came before the text that was last waited for.
    """

    def __init__(self, program: Callable[..., int], *arguments):
        file, self.other_end = pty.openpty()
        super().__init__(file, timeout=60, encoding="utf-8")
        given = (os.ttyname(self.other_end), program, arguments)
        self.process = LIBRARIES.Process(target=_on_terminal, args=given)
        self.process.start()

    def wait_for(self, *texts: str):
        """Reads until these appear, one after the other."""
        for text in texts:
            self.expect_exact(text)

    def exit_status(self) -> int | None:
        """The exit status, once the program has ended; where it does not end, it shows what it is doing."""
        self.process.join(30)
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGUSR1)
            self.expect(TIMEOUT, timeout=1)
            print(self.before)
        return self.process.exitcode

    def close(self):
        """Ends the program if it still runs."""
        self.process.kill()
        self.process.join()
        super().close()
        os.close(self.other_end)


def _on_terminal(name: str, program: Callable[..., int], arguments: tuple[object, ...]):
    """What the fork does: the terminal becomes its own, as of a program that a shell starts."""
    os.login_tty(os.open(name, os.O_RDWR))
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))  # noqa: SIM115
    os.environ |= {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}  # which asks nobody where the cursor is
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup make test` ignores it
    faulthandler.register(signal.SIGUSR1, sys.__stderr__)
    sys.exit(program(*arguments))
