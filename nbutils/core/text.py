"""Numbers, sizes, time spans and tables as text, and secrets kept out of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

HIDDEN = "[secret]"
_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|KAGGLE_KEY|ACCESS_KEY)(_|$)", re.IGNORECASE)
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


def with_interval(value: float, low: float, high: float, sign: str = "") -> str:
    """A number with the interval around it: `0.412 [0.398, 0.427]`."""
    return f"{number(value, sign)} [{number(low, sign)}, {number(high, sign)}]"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; a `|` inside a cell stays one cell."""
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines)


def secrets() -> list[str]:
    """Tokens and keys: values of environment variables whose names say that they are secret, the longest first."""
    values = {value.strip() for name, value in os.environ.items() if _NAME.search(name)}
    return sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)


def redact(text: str) -> str:
    """The text with every secret of the environment blotted out, also where JSON has escaped it."""
    for value in secrets():
        text = text.replace(value, HIDDEN).replace(json.dumps(value)[1:-1], HIDDEN)
    return text
