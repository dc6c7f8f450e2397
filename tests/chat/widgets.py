"""A chat widget without a browser: made, spoken to, and looked at."""

from __future__ import annotations

import threading

from nbutils.chat.models import LoadedModel
from nbutils.chat.widget import ChatWidget
from tests.chat.models import scripted_model


def widget(
    *replies: str,
    seconds: float = 0.0,
    reading: float = 0.0,
    beside: str = "",
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
        return scripted_model(name, replies, seconds, 512 if name == "base" else 1024, reading)

    names = ["final", "base", "more", "broken"]
    return ChatWidget(load, names, "final", {"read_ahead": False} | settings, beside)


def send(chat: ChatWidget, *said: str, wait: bool = True) -> None:
    for text in said:
        chat.send(text)
        if wait:
            chat.wait(20)


def fail(chat: ChatWidget, panel: int = 0) -> None:
    """The next reply of a column's model fails."""
    chat.panels[panel].session.engine.model.replies.insert(0, RuntimeError("out of <memory>"))


def shown(chat: ChatWidget, panel: int = 0) -> str:
    return chat.panels[panel].history.value + chat.panels[panel].newest.value


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
    """Picks models and waits; returns what the columns show, which the pickers have to say too."""
    for picker, name in picked.items():
        getattr(chat.controls, picker).value = name
    chat.wait(5)
    assert [chat.controls.model.value, chat.controls.beside.value] == [*chat.shown, "nobody"][:2]
    return chat.shown
