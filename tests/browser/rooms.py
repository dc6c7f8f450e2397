"""Chats with written replies, made inside the notebook's kernel by the browser tests."""

from __future__ import annotations

from nbutils.chat.display import show_chat
from nbutils.chat.widget import ChatWidget
from tests.chat.models import scripted_model


def room(
    replies: list[str], *, others: tuple[str, ...] = (), seconds=0.005, context=4096, reading=0.0, **settings
) -> ChatWidget:
    """A live chat with a model that gives these replies; other models give them with their name in front."""
    given = {"max_new_tokens": 1000, "read_ahead": False} | settings  # a script knows no background
    return show_chat(
        lambda name: scripted_model(name, replies, seconds, context, reading), ["final", *others], "final", given
    )
