"""One model's column in the chat widget: its session, its bubbles, its context meter."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import ipywidgets as widgets

from nbutils.chat import bubbles
from nbutils.chat.models import LoadedModel
from nbutils.chat.session import Bookmark, ChatSession

FRAME_SECONDS = 0.05
"""Shortest time between two updates of a reply in the making: faster than an eye sees, slower than a browser draws."""


class Panel:
    """Shows one `ChatSession`. Methods may be called from any thread, one at a time."""

    def __init__(self, loaded: LoadedModel, settings: dict[str, Any]) -> None:
        self.name = loaded.name
        self.session = ChatSession(loaded.model, loaded.tokenizer, **settings)
        self._pieces: Iterator[str] = iter(())
        self._next_frame = 0.0
        self._title = widgets.HTML(f'<div class="sc-title">{bubbles.escape(loaded.line)}</div>')
        self._history, self._live, self._meter = widgets.HTML(), widgets.HTML(), widgets.HTML()
        flow = widgets.VBox([self._history, self._live])
        flow.add_class("sc-flow")
        log = widgets.VBox([flow])
        log.add_class("sc-log")
        self.box = widgets.VBox([self._title, log, self._meter])
        self.box.add_class("sc-panel")
        self.show()

    def show(self) -> None:
        """Draws the conversation as it stands."""
        self._draw(self.session.transcript()["messages"])

    def begin(self, pieces: Iterator[str], said: str | None = None, *, edited: bool = False) -> None:
        """Takes a reply that is about to be written; `advance` writes it.

        The message that it answers is shown at once, with an empty bubble below it, in place of the last one if
        `edited`: reading a long history takes a while. Where nothing new was `said`, the old reply stands meanwhile.
        """
        self._pieces = pieces
        self._next_frame = 0.0
        if said is not None:
            messages = self.session.transcript()["messages"]
            if edited:
                del messages[max(i for i, m in enumerate(messages) if m["role"] == "user") :]
            waiting = [{"role": "user", "content": said.strip()}, {"role": "assistant", "content": ""}]
            self._draw([*messages, *waiting], writing=True)

    def go_back(self, mark: Bookmark) -> None:
        """Lets go of a reply in the making and shows the conversation as it was at a bookmark."""
        self.begin(iter(()))
        self.session.go_back(mark)
        self.show()

    def advance(self) -> bool:
        """Writes one piece of the reply and shows it when it is time to; False once the reply is complete."""
        if next(self._pieces, None) is None:
            self.show()
            return False
        now = time.perf_counter()
        if now >= self._next_frame:
            self._draw(self.session.transcript()["messages"], writing=True)
            drawing = time.perf_counter() - now
            self._next_frame = now + max(FRAME_SECONDS, 5 * drawing)  # drawing may take a fifth of the time
        return True

    def _draw(self, messages: Sequence[dict[str, Any]], *, writing: bool = False) -> None:
        """The last message below the others; the others first, so that none is missing for a moment in between."""
        context = self.session.context
        nothing = '<div class="sc-empty">Say something.</div>'
        self._history.value = bubbles.conversation(messages[:-1], context) if messages else nothing
        self._live.value = bubbles.bubble(messages[-1], writing=writing) if messages else ""
        self._meter.value = bubbles.meter(context)
