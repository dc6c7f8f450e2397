"""What a person sees of a run: bars over stages and cells, live output, the final table."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from nbutils.core.text import redact

_UNPRINTABLE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\].*?(\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]", re.DOTALL)
_COLOURS = {"done": "green", "skipped": "green", "kept": "green", "paused": "yellow", "failed": "red"}


@dataclass(frozen=True)
class Row:
    """One line of the final table; `seconds` is None where nothing was executed."""

    stage: str
    status: str
    seconds: float | None
    made: str


class _Console(Console):
    """rich's console, but a reader that goes away (`| head`) ends the printing, not an hour's training."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Display:
    """Prints a run's progress; on a terminal with bars that stay at the bottom."""

    def __init__(self, console: Console | None = None) -> None:
        # Without a terminal there is no width to respect: long lines stay whole.
        self.console = console or _Console(highlight=False)
        if not self.console.is_terminal:
            self.console.width = 160
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(),
            TextColumn("{task.fields[under_way]}"), TimeElapsedColumn(), console=self.console, transient=True,
        )  # fmt: skip
        self._stages = self._bars.add_task("stages", under_way="")
        self._cells = self._bars.add_task("cells", visible=False, under_way="")
        self._line = ""

    @contextmanager
    def run(self, total: int) -> Iterator[None]:
        """Shows the bars for a run of `total` stages while the block runs."""
        self._bars.update(self._stages, total=total)
        with self._bars if self.console.is_terminal else nullcontext():
            yield
        self.flush()

    @contextmanager
    def stage(self, number: int, total: int, name: str, notebook: str, cells: int, reason: str) -> Iterator[None]:
        """Shows one stage at work while the block runs."""
        self.say(f"[{number}/{total}] {name}: {notebook} — {reason}", "bold")
        self._bars.reset(self._cells, total=cells, visible=True, under_way="starting the kernel")
        self._bars.update(self._stages, under_way=name)
        try:
            yield
        finally:
            self.flush()
            self._bars.update(self._cells, visible=False)

    def stage_over(self) -> None:
        """Moves the stages' bar on by one."""
        self._bars.advance(self._stages)

    def cell(self, number: int, total: int, title: str) -> None:
        """Says which cell is under way."""
        self.flush()
        self._bars.update(self._cells, completed=number - 1, total=total, under_way=title)
        if not self.console.is_terminal:
            self.say(f"  cell {number}/{total} · {title}")

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

    def say(self, text: str, style: str = "") -> None:
        """Prints one sentence above the bars."""
        # A terminal that has been closed must not end the run.
        with suppress(OSError):
            self.console.print(Text(clean(text), style), soft_wrap=True)

    def table(self, rows: list[Row]) -> None:
        """The final table."""
        table = Table("stage", "status", Column("seconds", justify="right"), "what it made", box=SIMPLE, pad_edge=False)
        for row in rows:
            seconds = "–" if row.seconds is None else f"{row.seconds:.1f}"
            table.add_row(row.stage, Text(row.status, _COLOURS.get(row.status, "")), seconds, Text(clean(row.made)))
        with suppress(OSError):
            self.console.print(table)

    def _print_line(self, line: str) -> None:
        shown = line.rstrip("\r").rpartition("\r")[2]
        self.say(f"  │ {shown}", "dim")


def clean(text: str) -> str:
    """Text safe to print: a model's output may hold control sequences, and nothing may show a secret."""
    return redact(_UNPRINTABLE.sub("", text))
