"""What a person sees of a run: a line for each cell, live output, the final table."""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

from nbutils.core.text import redact

_UNPRINTABLE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\].*?(\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]", re.DOTALL)


class Display:
    """Prints a run's progress."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stdout
        self._line = ""

    def output(self, text: str) -> None:
        """Prints what a cell writes, as it comes; of a line rewritten with carriage returns only its end."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._print_line(line)
        if len(self._line) > 10_000:
            self.flush()

    def flush(self) -> None:
        """Prints the unfinished last line of a cell's output."""
        line, self._line = self._line, ""
        if line.strip():
            self._print_line(line)

    def say(self, text: str) -> None:
        """Prints one sentence."""
        try:
            print(clean(text), file=self._file, flush=True)
        except OSError:  # a reader that goes away (`| head`), or a closed terminal, does not end an hour's training
            silence()

    def table(self, rows: list[tuple[str, str, str, str]]) -> None:
        """The final table: stage, status, seconds ("–" where nothing was executed), and what it made."""
        rows = [("stage", "status", "seconds", "what it made"), *rows]
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        for stage, status, seconds, made in rows:
            self.say(f"{stage:{first}}  {status:{second}}  {seconds:>7}  {made}".rstrip())

    def _print_line(self, line: str) -> None:
        self.say("  │ " + line.rstrip("\r").rpartition("\r")[2])


def silence() -> None:
    """Nobody reads standard output any more: what is printed from now on goes nowhere instead of failing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def clean(text: str) -> str:
    """Text safe to print: a model's output may hold control sequences, and nothing may show a secret."""
    return redact(_UNPRINTABLE.sub("", text))
