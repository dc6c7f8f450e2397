"""A chat widget without a browser: made, spoken to, and looked at."""

from __future__ import annotations

import html
import re
import threading
from datetime import UTC, datetime

from nbutils.chat.models import LoadedModel
from nbutils.chat.widget import ChatWidget
from tests.chat.models import TOKENIZER, ScriptedModel


def widget(
    *replies: str,
    seconds: float = 0.0,
    reading: float = 0.0,
    beside: str = "",
    earlier: ChatWidget | None = None,
    ready: threading.Event | None = None,
    **settings,
) -> ChatWidget:
    """A chat with models that give these replies, each with its name in front; all but `final` wait for `ready`.

    `base` reads half as much as the others, and `broken` cannot be loaded.
    """

    def load(name: str) -> LoadedModel:
        if ready is not None and name != "final":
            assert ready.wait(5)
        if name == "broken":
            raise RuntimeError("disk on fire")
        texts = [reply if name == "final" else f"{name} {reply}" for reply in replies]
        model = ScriptedModel(TOKENIZER, texts, seconds, 512 if name == "base" else 1024, reading)
        return LoadedModel(name, model, TOKENIZER, f"{name} on the CPU")

    names = ["final", "base", "more", "broken"]
    return ChatWidget(load, names, "final", {"read_ahead": False} | settings, beside, earlier)


def send(chat: ChatWidget, *said: str, wait: bool = True) -> None:
    for text in said:
        chat.send(text)
        if wait:
            chat.wait(20)


def click(chat: ChatWidget, button: str) -> None:
    getattr(chat.controls, button).click()
    chat.wait(5)


def fail(chat: ChatWidget, panel: int = 0) -> None:
    """The next reply of a column's model fails."""
    chat.panels[panel].session.engine.model.replies.insert(0, RuntimeError("out of <memory>"))


def upload(chat: ChatWidget, content: bytes) -> None:
    file = {"name": "t.json", "type": "application/json", "size": len(content), "content": memoryview(content)}
    chat.controls.upload.value = (file | {"last_modified": datetime.now(UTC)},)


def shown(chat: ChatWidget, panel: int = 0) -> str:
    return chat.panels[panel].history.value + chat.panels[panel].newest.value


def notice(chat: ChatWidget) -> str:
    """What the line for remarks and errors says."""
    return html.unescape(chat.notice.value)


def texts(chat: ChatWidget, panel: int = 0) -> list[str]:
    """What was said in a column."""
    return [message["content"] for message in chat.panels[panel].session.messages]


def last(chat: ChatWidget) -> list[str]:
    """What was said last in each column."""
    return [texts(chat, panel)[-1] for panel in range(len(chat.panels))]


def sampling(chat: ChatWidget, name: str) -> list:
    """A setting of each column's session, and then what its control shows."""
    return [*(getattr(panel.session.sampling, name) for panel in chat.panels), chat.controls.sampling[name].value]


def pick(chat: ChatWidget, **picked: str) -> list[str]:
    """Picks models and waits; returns what the columns show, each by its title."""
    for picker, name in picked.items():
        getattr(chat.controls, picker).value = name
    chat.wait(5)
    assert [chat.controls.model.value, chat.controls.beside.value] == ([p.name for p in chat.panels] + ["nobody"])[:2]
    return [re.search(r">(\w+) on the CPU<", panel.title.value)[1] for panel in chat.panels]
