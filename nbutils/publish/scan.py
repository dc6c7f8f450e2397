"""A last look before anything leaves the machine: does a file that would be published hold a secret?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from nbutils.core.errors import UserError
from nbutils.core.secrets import secrets

START = rb"(?:(?<![A-Za-z0-9_])|(?<=\\[nrt]))"
"""Where a word begins, also behind a line break or tab as JSON writes it."""

PATTERNS = {
    "a Hugging Face token": START + rb"(?:hf|api_org)\\?_[A-Za-z0-9]{30,}",
    "a GitHub token": START + rb"(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})",
    "an AWS key": START + rb"(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google key": START + rb"AIza[A-Za-z0-9_-]{35}",
    "a Slack token": START + rb"xox[abprs]-[A-Za-z0-9-]{10,}",
    "an API key": START + rb"sk-[A-Za-z0-9_-]{20,}",
    "a Kaggle key": rb'"key"\s*:\s*"[0-9a-f]{32}"',
    "a Weights & Biases key": rb"(?i)wandb[^\n]{0,20}\b[0-9a-f]{40}\b",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
"""What secrets look like, by the prefixes and lengths that their makers document."""

NOT_TEXT = (".safetensors", ".png")


def check_secrets(folder: Path, files: Iterable[Path]) -> int:
    """Reads every text file; returns how many. UserError names the first file and line that hold a secret.

    Secrets are what PATTERNS describes, and the values of this machine's own secret environment variables.
    """
    own = [form.encode() for value in secrets() for form in {value, json.dumps(value)[1:-1]}]
    count = 0
    for file in files:
        if file.suffix in NOT_TEXT:
            continue
        count += 1
        data = (folder / file).read_bytes()
        for what, pattern in PATTERNS.items():
            match = re.search(pattern, data)
            if match:
                raise _found(file, what, data[: match.start()])
        for value in own:
            if value in data:
                raise _found(file, "the value of a secret environment variable", data[: data.index(value)])
    return count


def _found(file: Path, what: str, before: bytes) -> UserError:
    line = before.count(b"\n") + 1
    return UserError(
        f"{file}, line {line}, holds what looks like {what}: nothing was published; remove it from the file that it "
        "comes from, run that notebook again, and revoke it if it has ever left this machine."
    )
