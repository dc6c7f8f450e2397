"""A chat widget: made, spoken to, and looked at without a browser; the browser tests make theirs here too."""

import re
import threading
from functools import partial
from pathlib import Path

from nbutils.chat.display import show_chat
from nbutils.chat.models import LoadedModel
from nbutils.chat.widget import ChatWidget
from nbutils.core.run.layout import Run
from tests.chat.models import TOKENIZER, ScriptedModel, contents


def widget(
    *replies: str,
    seconds=0.0,
    reading=0.0,
    context=1024,
    others: tuple[str, ...] = ("base", "more", "broken"),
    beside="",
    ready: threading.Event | None = None,
    run: str | None = None,
    **settings,
) -> ChatWidget:
    """A live chat with models that give these replies, all but `final` with their name in front and after `ready`.

    `base` reads half as much as the others, and `broken` cannot be loaded. `run`: the folder of the run that `final` is
    of.
    """

    def load(name: str) -> LoadedModel:
        if ready is not None and name != "final":
            assert ready.wait(5)
        if name == "broken":
            raise RuntimeError("disk on fire")
        own = [reply if name == "final" else f"{name} {reply}" for reply in replies]
        model = ScriptedModel(TOKENIZER, own, seconds, context // 2 if name == "base" else context, reading)
        own_run = Run(Path(run)) if run and name == "final" else None
        return LoadedModel(name, model, TOKENIZER, f"{name} on the CPU", own_run)

    return show_chat(load, ["final", *others], "final", {"read_ahead": False} | settings, beside)


room = partial(widget, seconds=0.005, context=4096, others=(), max_new_tokens=1000)
"""A chat of the browser tests, made in a notebook's kernel."""


def send(chat: ChatWidget, *said: str):
    for text in said:
        chat.send(text)
        chat.wait(20)


def fail(chat: ChatWidget, panel=0):
    """The next reply of a column's model fails."""
    chat.panels[panel].session.engine.model.replies.insert(0, RuntimeError("out of <memory>"))


def shown(chat: ChatWidget, panel=0) -> str:
    return chat.panels[panel].history.value + chat.panels[panel].newest.value


def bubbles(chat: ChatWidget) -> list[str]:
    """The first line of each bubble, from top to bottom, as HTML."""
    return re.findall('dir="auto">(?:<p[^>]*>)?([^<]*)', shown(chat))


def texts(chat: ChatWidget, panel=0) -> list[str]:
    """What was said in a column."""
    return contents(chat.panels[panel].session.messages)


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
