"""`python -m nbutils origin RUN --text "…"`: which passages of a text stand in a run's training data, and where."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence

from nbutils.core.errors import UserError
from nbutils.core.files import resolve
from nbutils.core.origin.index import MIN_WORDS, Index, Span, words_in
from nbutils.core.run.layout import Run
from nbutils.core.text import counted, visible

NOTHING = f"no {MIN_WORDS} words in a row stand in the training data"
LISTED = 100
"""Conversations of each passage in the JSON."""
SHOWN = 3
"""Conversations of each passage that are shown to a person."""
AROUND = 80
"""Characters shown before and behind a passage."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `origin`."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a model in it")
    parser.add_argument("--text", required=True, help=f"what to look for, {MIN_WORDS} words or more; case matters")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(arguments: argparse.Namespace) -> int:
    """Prints the passages. UserError for a text of fewer than six words, and for a run without training rows."""
    text = arguments.text.encode(errors="replace").decode()  # a terminal's wrong byte is half a surrogate pair
    if (words := words_in(text)) < MIN_WORDS:
        raise UserError(
            f"The text has {counted(words, 'word')}, and nothing shorter than {MIN_WORDS} words is looked for: give a "
            "longer one."
        )
    folder = resolve(arguments.run)
    index = Index(Run.around(folder) or Run(folder))
    spans = index.trace(text)
    if arguments.json:
        found = [vars(span) | {"places": [*map(vars, index.places(span, LISTED))]} for span in spans]
        print(json.dumps({"text": text, "spans": found}, indent=2))
    else:
        print(*lines(index, spans), sep="\n")
    return 0


def lines(index: Index, spans: Sequence[Span]) -> Iterator[str]:
    """What a terminal shows of a text's spans; no text has power over it."""
    if not spans:
        yield NOTHING
    for span in spans:
        head, *below = description(index, span, _line, "{}: {}[{}]{}")
        yield head
        yield from (f"  {line}" for line in below)


def description(index: Index, span: Span, safe: Callable[[str], str], form: str) -> Iterator[str]:
    """What a person reads of a span: its text and how often it stands there, the first conversations that hold it, and
    how many others do. `form` takes the place's name and its passage in three parts; `safe` makes texts harmless.
    """
    often = f"{counted(span.count, 'time')} in {counted(span.conversations, 'conversation')}"
    yield f"“{safe(span.text)}”: {span.words} words, {often}"
    for place in index.places(span, SHOWN):
        yield form.format(*map(safe, (place.name, *place.passage(AROUND))))
    if (others := span.conversations - SHOWN) > 0:
        yield f"and {counted(others, 'other conversation')}"


def _line(text: str) -> str:
    return visible(re.sub(r"\s+", " ", text))
