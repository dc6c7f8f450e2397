"""A terminal chat with a slow model whose replies are written here; the pseudo-terminal test starts it."""

from __future__ import annotations

import sys

from nbutils.chat.session import ChatSession
from nbutils.chat.terminal import talk
from tests.chat.models import ScriptedModel, byte_tokenizer

REPLIES = ["first \x1b[31mreply 🌙", "slowly " * 100, "after the stop", "again", "last"]


def main() -> int:
    """Talks on this terminal."""
    tokenizer = byte_tokenizer()
    session = ChatSession(ScriptedModel(tokenizer, REPLIES, 0.02), tokenizer, read_ahead=False, max_new_tokens=500)
    return talk(session, interactive=sys.stdin.isatty())


if __name__ == "__main__":
    raise SystemExit(main())
