"""Chats with written replies, made inside the notebook's kernel by the browser tests."""

from __future__ import annotations

from nbutils.chat.display import show_chat
from nbutils.chat.models import LoadedModel
from nbutils.chat.widget import ChatWidget
from tests.chat.models import ScriptedModel, byte_tokenizer

TOKENIZER = byte_tokenizer()


def room(replies: list[str], *, others: tuple[str, ...] = (), seconds: float = 0.005, beside: str = "", context=4096,
         reading: float = 0.0, **settings) -> ChatWidget:  # fmt: skip
    """A live chat with a model that gives these replies; other models give them with their name in front."""

    def load(name: str) -> LoadedModel:
        texts = [reply if name == "final" else f"{name}: {reply}" for reply in replies]
        model = ScriptedModel(TOKENIZER, texts, seconds, context, reading)
        return LoadedModel(name, model, TOKENIZER, f"{name}: replies written by a test, on the CPU")

    given = {"max_new_tokens": 1000, "read_ahead": False} | settings  # a script knows no background
    return show_chat(load, ["final", *others], "final", given, beside)
