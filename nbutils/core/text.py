"""Numbers, sizes, time spans and tables as text, and secrets kept out of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HIDDEN = "[secret]"
_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|KAGGLE_KEY|ACCESS_KEY)(_|$)", re.IGNORECASE)
_VISIBLE = {c: 0x2400 + c for c in range(32) if chr(c) not in "\n\t"} | dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)
_VISIBLE |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
_SHORTEST = 8  # characters; a shorter value would blot out ordinary words


def duration(seconds: float) -> str:
    """A time span as people say it."""
    if seconds < 90:
        return f"{seconds:.{0 if seconds >= 10 else 1}f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def size(count: float) -> str:
    """A number of bytes in KiB, MiB or GiB."""
    power = 3 if count >= 2**30 else 2 if count >= 2**20 else 1
    return f"{count / 1024**power:,.1f} {' KMG'[power]}iB"


def number(value: float, sign: str = "") -> str:
    """A number with as many decimals as its size deserves; with `sign` '+' also a positive one has its sign."""
    decimals = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 3
    return f"{value:{sign},.{decimals}f}"


def counted(number: int, word: str) -> str:
    """A number with its word, in the plural where there are several."""
    return f"{number} {word}" + ("" if number == 1 else "es" if word.endswith("s") else "s")


def with_interval(value: float, low: float, high: float, sign: str = "") -> str:
    """A number with the interval around it: `0.412 [0.398, 0.427]`."""
    return f"{number(value, sign)} [{number(low, sign)}, {number(high, sign)}]"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; a `|` inside a cell stays one cell."""
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines)


def code(name: str) -> str:
    """A name as Markdown's code, whatever characters it has."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", name)), default=0))
    pad = " " * (len(ticks) > 1)
    return f"{ticks}{pad}{' '.join(name.split())}{pad}{ticks}"


def task_of(score: Mapping[str, Any]) -> str:
    """The task that a score or difference of `results.json` is of, and the part of its items where it is of a part."""
    return code(score["task"]) + (f" ({score['part']} items)" if "part" in score else "")


def score_of(score: Mapping[str, Any]) -> str:
    """The value of a score of `results.json`, with its interval where it has one."""
    return with_interval(score["value"], score["low"], score["high"]) if "low" in score else number(score["value"])


def score_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """A row for each task, part and metric of `results.json`: these, the number of items, and a cell for each model."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for score in results["scores"]:
        metric = f"{code(score['metric'])} {'↑' if score['higher_is_better'] else '↓'}"
        rows.setdefault((task_of(score), metric, f"{score['n']:,}"), {})[score["model"]] = score_of(score)
    return [[*row, *(cells.get(model["name"], "—") for model in results["models"])] for row, cells in rows.items()]


def memorised_table(memorised: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """What `results.json` says of memorised replies as a Markdown table; `names` are words for models."""

    def share(found: Mapping[str, float], sign: str = "") -> str:
        return f"{found['value']:{sign}.1%} [{found['low']:{sign}.1%}, {found['high']:{sign}.1%}]"

    rows = []
    for row in memorised["rows"]:
        name, against = names.get(row["model"], code(row["model"])), row.get("against_people")
        against = f"{share(against, '+')}, {against['word']}" if against else "—"
        who = ", ".join(filter(None, (name, row["decoding"])))
        rows.append([who, row["replies"], share(row["share"]), row["longest"], share(row["whole"]), against])
    head = ["replies of", "replies", "words in such passages", "longest, words", "whole messages", "against people"]
    return markdown_table(head, rows)


def visible(text: str) -> str:
    """Text without power over the terminal: control characters are shown, not obeyed; so are direction overrides."""
    return text.translate(_VISIBLE)


def first_line(error: BaseException | str) -> str:
    """The first line of an error's text, as a part of a sentence; the name of its type where it has none."""
    text = str(error).strip() or type(error).__name__
    return text.split("\n")[0].strip()[:500].rstrip(".")


def secrets() -> list[str]:
    """Tokens and keys: values of environment variables whose names say that they are secret, the longest first."""
    values = {value.strip() for name, value in os.environ.items() if _NAME.search(name)}
    return sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)


def redact(text: str) -> str:
    """The text with every secret of the environment blotted out, also where JSON has escaped it."""
    for value in secrets():
        text = text.replace(value, HIDDEN).replace(json.dumps(value)[1:-1], HIDDEN)
    return text
