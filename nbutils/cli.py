"""The command line: `python -m nbutils COMMAND`. A command's module is imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Sequence

from nbutils.core.errors import UserError
from nbutils.pipeline.display import silence

COMMANDS = {
    "run": ("nbutils.pipeline.run", "run the notebooks of a profile"),
    "chat": ("nbutils.chat.terminal", "talk to a model in the terminal"),
    "origin": ("nbutils.core.origin.command", "find a text's passages in a run's training data"),
    "doctor": ("nbutils.pipeline.doctor", "check machine, parameters, data and model"),
    "settings": ("nbutils.pipeline.parameters", "write the training worker's SETTINGS.json"),
    "fetch": ("nbutils.pipeline.fetch", "collect what a profile takes from the hub, for machines without internet"),
    "page": ("nbutils.pipeline.page", "make the page on which a run's model talks, and hand it out here"),
    "sweep": ("nbutils.sweep.command", "try several recipes, and say which can be told apart"),
    "tune": ("nbutils.sweep.tune", "measure which settings train fastest on this machine"),
    "kaggle": ("nbutils.kaggle.command", "bundle notebooks for Kaggle, push them, collect packages"),
}
"""Each command's module, which has `add_arguments(parser)` and `main(arguments) -> int`, and its help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status: 0 done, 1 with one sentence on what is wrong, 2 wrong usage."""
    for stream in (sys.stdout, sys.stderr):  # a console that is not UTF-8 shows ? for what it cannot
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m nbutils", description="Trains and measures a chat model.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, help_text) in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
        if given[:1] == [name]:
            importlib.import_module(module).add_arguments(command)
    parsed = parser.parse_args(given)
    try:
        return int(importlib.import_module(COMMANDS[parsed.command][0]).main(parsed))
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        silence()
        return 141
