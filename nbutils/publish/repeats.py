"""E-mail addresses, links and long numbers that the model repeats from its training data: a person looks at them before
anything is published."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import Json, read_json, read_jsonl
from nbutils.core.origin.index import Index, Place
from nbutils.core.run.layout import Run
from nbutils.core.stages import maker
from nbutils.core.text import counted, visible
from nbutils.publish.settings import PublishSettings

LETTER, PATH = "[a-z0-9-]", r"[a-z0-9_.~:/?#@!$&*+,;=%-]*"
PATTERN = re.compile(
    rf"(?P<mail>(?<![a-z0-9_.+-])[a-z0-9_.+-]+@{LETTER}+(?:\.{LETTER}+)+)"
    rf"|(?P<link>(?:https?://|(?<![a-z0-9_])www\.)\w{PATH}"
    rf"|(?<![a-z0-9_.-])(?:{LETTER}+\.)+(?:[a-z]{{2,}}(?=/\w)|(?:com|org|net|edu|gov|info|io|app|dev|uk)(?!{LETTER}))"
    rf"(?:/{PATH})?)"
    r"|(?P<number>(?<![a-z_\d])[+(]{0,2}\d(?:[ ()./-]{0,2}\d){6,}(?![a-z_\d]))",
    re.IGNORECASE,
)
"""What they look like. A link without `www.` has a path or one of the commonest endings, and ends before a bracket or
quote, which may be the sentence's; a number has seven digits or more, with what usually parts them in between."""
DIGITS = 9
"""Of a number its last so many are compared: a phone number may have a country's in front, or 0."""
SHOWN = 3
"""Places of each that are named."""


def repeats_of(run: Run) -> Json:
    """What the run's model repeats: its `replies` are those of the evaluation, of all samples and of the chat.

    `found`: of each its `kind` and `text`, how often it is `said`, in how many `messages` of the training
    data it stands, and the first `places` there. Where that data is gone, `unknown` says why, and everything of this
    kind in the replies is `found`.
    """
    replies = list(_replies(run))
    said: dict[tuple[str, str], Json] = {}
    for key, text in (each for reply in replies for each in _written(reply)):
        said.setdefault(key, {"kind": key[0], "text": text, "said": 0, "messages": 0, "places": []})["said"] += 1
    unknown = ""
    try:
        if said:
            _look_up(said, Index(run).conversations)
    except UserError as error:
        unknown = str(error)
    found = [entry for entry in said.values() if entry["messages"] or unknown]
    return {"replies": len(replies), "found": found, "unknown": unknown}


def _replies(run: Run) -> Iterator[str]:
    """Everything that was kept of what the model said; runs of before kept less."""
    scores = run.folder(maker("scores").name)
    for file in (scores / "replies.jsonl", scores / "samples.jsonl", run.training / "samples.jsonl"):
        if file.is_file():
            yield from (row["reply"] for row in read_jsonl(file) if row.get("model", "run") == "run")
    talk = read_json(run.folder(maker("transcript").name) / "transcript.json")
    yield from (message["content"] for message in talk["messages"] if message["role"] == "assistant")


def _written(text: str) -> Iterator[tuple[tuple[str, str], str]]:
    """What a text holds of these; before each what it is known by however it is written."""
    for match in PATTERN.finditer(text):
        kind, found = str(match.lastgroup), match[0].rstrip(".,;:!?*_~")
        digits, bare = re.sub(r"\D", "", found), re.sub(r"^(https?://)?(www\.)?|/$", "", found.casefold())
        yield (kind, digits[-DIGITS:] if kind == "number" else bare), found


def _look_up(said: dict[tuple[str, str], Json], conversations: Any) -> None:
    """Counts the messages of the training rows that hold any of these, and notes the first ones."""
    for rows in conversations.select_columns(["source", "index", "messages"]).with_format("arrow").iter(1000):
        for row in rows.to_pylist():
            for number, message in enumerate(row["messages"], 1):
                place = Place(row["source"], row["index"], number, message["role"], message["content"], 0, 0)
                for key in dict(_written(place.text)).keys() & said.keys():
                    said[key]["messages"] += 1
                    said[key]["places"] = [*said[key]["places"], place.name][:SHOWN]


def in_words(repeats: Json) -> str:
    """How many there are, in how many replies."""
    unsure = ", not compared with that data" * bool(repeats["unknown"])
    return f"{len(repeats['found']) or 'none'} in {repeats['replies']} replies{unsure}"


def listed(repeats: Json) -> Iterator[str]:
    """What a person reads before the model is published; no text has power over the page."""
    yield f"E-mail addresses, links and long numbers of the training data that the model repeats: {in_words(repeats)}"
    if repeats["unknown"]:
        yield f"These could not be looked for in the training data: {repeats['unknown']}"
    for entry in repeats["found"]:
        said, there = counted(entry["said"], "time"), counted(entry["messages"], "message")
        where = "" if repeats["unknown"] else f", in {there} of the training data"
        yield visible("\n    ".join([f"- {entry['kind']} {entry['text']}: said {said}{where}", *entry["places"]]))


def check_repeats(repeats: Json, settings: PublishSettings) -> None:
    """UserError where there are any and nobody has accepted them."""
    if repeats["found"] and not settings.accept_repeats:
        raise UserError(
            f"The model repeats e-mail addresses, links or long numbers of its training data ({in_words(repeats)}): "
            "look at the list in notebook 06, and set accept_repeats to true if they may be published."
        )
