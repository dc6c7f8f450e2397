"""Secrets of the environment (tokens, keys): kept out of everything that is written or shown."""

from __future__ import annotations

import json
import os
import re

HIDDEN = "[secret]"
_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|KAGGLE_KEY|ACCESS_KEY)(_|$)", re.IGNORECASE)
_SHORTEST = 8  # characters; a shorter value would blot out ordinary words


def secrets() -> list[str]:
    """Values of environment variables whose names say that they are secret, the longest first."""
    values = {value.strip() for name, value in os.environ.items() if _NAME.search(name)}
    return sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)


def redact(text: str) -> str:
    """The text with every secret of the environment blotted out, also where JSON has escaped it."""
    for value in secrets():
        text = text.replace(value, HIDDEN).replace(json.dumps(value)[1:-1], HIDDEN)
    return text
