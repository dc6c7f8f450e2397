"""The embedded corpus: `chitchat-dataset` from PyPI, human conversations about anything (MIT)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from nbutils.core.errors import UserError
from nbutils.data.fates import Turn

NAME = "chitchat"
ROLES = {0: "user", 1: "assistant"}


def file() -> Path:
    """The corpus as its package carries it. UserError where the package is missing."""
    found = importlib.util.find_spec("chitchat_dataset")  # found, not imported: the import would read 40 MB
    if found is None or found.origin is None:
        raise UserError(
            "The package chitchat-dataset, which holds the corpus 'chitchat', is missing; install it with pip."
        )
    return Path(found.origin).with_name("dataset.json")


def conversations() -> Iterator[list[Turn]]:
    """Every conversation in file order: the first speaker is the user, the second the assistant.

    Further speakers keep a role of their own (`speaker 3`), so that such rows are dropped by a reason that names them.
    """
    for conversation in json.loads(file().read_bytes()).values():
        roles: dict[str, str] = {}
        messages = []
        for message in (message for block in conversation["messages"] for message in block):
            name = ROLES.get(len(roles), f"speaker {len(roles) + 1}")
            messages.append((roles.setdefault(message["sender"], name), message["text"]))
        yield messages


def table() -> pa.Table:
    """The corpus in the shape `messages`: one column of lists of {role, content}."""
    rows = [[{"role": role, "content": text} for role, text in messages] for messages in conversations()]
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    return pa.table({"messages": pa.array(rows, kind)})
