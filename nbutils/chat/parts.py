"""The parts of the chat widget: a model's column, and everything that a person can touch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from functools import cache, partial
from typing import Any

import ipywidgets as widgets

from nbutils.chat import markup
from nbutils.chat.models import LoadedModel
from nbutils.chat.session import ChatSession
from nbutils.core.chat_engine.sampling import Sampling, Slider
from nbutils.core.errors import UserError
from nbutils.core.files import Json
from nbutils.core.origin.index import Index
from nbutils.core.run.layout import Run

FRAME_SECONDS = 0.05
"""Shortest time between two updates of a reply in the making: faster than an eye sees, slower than a browser draws."""

NOBODY = "nobody"
MARK = "\ue000"
"""In the outbox it divides a message from a stamp that makes each one different; `widget.js` has it too."""


class Panel:
    """One model's column: its session, its bubbles, its context meter.

    Methods may be called from any thread, one at a time. What a run's model has said is traced to the run's training
    rows in a thread of its own, so that nobody waits while their index is made.
    """

    def __init__(self, loaded: LoadedModel, settings: Json) -> None:
        self.name = loaded.name
        self.session = ChatSession(loaded.model, loaded.tokenizer, **settings)
        self._run, self._traced = loaded.run, dict[str, markup.Traced]()
        self._opened = cache(Index)  # opening reads all of it
        self._tracing, self._drawing, self._writing = threading.Lock(), threading.RLock(), False
        self.title = widgets.HTML(f'<div class="sc-title">{markup.escape(loaded.line)}</div>')
        self.history, self.newest, self.meter = widgets.HTML(), widgets.HTML(), widgets.HTML()
        flow = widgets.VBox([self.history, self.newest]).add_class("sc-flow")
        log = widgets.VBox([flow]).add_class("sc-log")
        self.box = widgets.VBox([self.title, log, self.meter]).add_class("sc-panel")
        self.show()

    def show(self) -> None:
        """Draws the conversation as it is; what is to be traced is drawn again when that is done."""
        messages = self.session.transcript()["messages"]
        self._draw(messages)
        replies = [m["content"] for m in messages if m["role"] == "assistant" and m["content"] not in self._traced]
        if self._run and replies:
            threading.Thread(target=self._trace, args=(self._run, replies), name="chat-traces", daemon=True).start()

    def _trace(self, run: Run, replies: list[str]) -> None:
        with self._tracing:
            try:
                index = self._opened(run)
                self._traced |= {t: markup.with_origins(t, index) for t in replies if t not in self._traced}
            except UserError as error:
                self._traced |= {text: markup.without_origins(text, str(error)) for text in replies}
        with self._drawing:
            if not (self._writing or self.session.busy):
                self._draw(self.session.transcript()["messages"])

    def show_waiting(self, said: str, *, edited: bool) -> None:
        """Shows a message that was just sent, with an empty bubble below it: reading a long history takes a while.

        If `edited`, it replaces the last message.
        """
        messages = self.session.transcript()["messages"]
        if edited:
            del messages[self.session.last_user() :]
        waiting = [{"role": "user", "content": said.strip()}, {"role": "assistant", "content": ""}]
        self._draw([*messages, *waiting], writing=True)

    def write(self, pieces: Iterator[str]) -> Generator[bool]:
        """Writes a reply piece by piece, and shows it when it is time to."""
        next_frame = 0.0
        for _ in pieces:
            now = time.perf_counter()
            if now >= next_frame:
                self._draw(self.session.transcript()["messages"], writing=True)
                drawing = time.perf_counter() - now
                next_frame = now + max(FRAME_SECONDS, 5 * drawing)  # drawing may take a fifth of the time
            yield True
        self.show()

    def _draw(self, messages: list[Json], *, writing: bool = False) -> None:
        """The last message below the others; the others first, so that none is missing for a moment in between."""
        context = self.session.context
        nothing = '<div class="sc-empty">Say something.</div>'
        with self._drawing:
            self._writing = writing
            self.history.value = markup.conversation(messages[:-1], context, self._traced) if messages else nothing
            self.newest.value = markup.bubble(messages[-1], self._traced, writing=writing) if messages else ""
            self.meter.value = markup.meter(context)


class Controls:
    """Input, buttons, pickers, sampling: each calls the method of the chat widget that does what it says."""

    def __init__(self, chat: Any, names: list[str], shown: list[str], sampling: Sampling) -> None:
        self.editing = self._showing = False
        self._draft = ""  # what was in the input before it held the message to edit
        self.input = widgets.Textarea(
            description="Message", placeholder="Enter sends, Shift-Enter starts a new line.",
            continuous_update=False, rows=2,
        ).add_class("sc-input")  # fmt: skip
        # A text and a click are two messages, and ipywidgets may keep the first back while the second goes out. So
        # the page writes what is to be sent here, as one; without its script, Send alone does its work.
        self.outbox = widgets.Textarea(description="Outbox", continuous_update=False).add_class("sc-outbox")
        _on_change(self.outbox, lambda sent: self._heard(chat, sent))
        self.send = _button("Send", "Send the message (Enter)", lambda: chat.send(self.input.value), "primary")
        self.stop = _button("Stop", "End the reply that is being written", chat.stop, "warning")
        self.regenerate = _button("Regenerate", "Another reply to the last message", chat.regenerate)
        self.edit = _button("Edit", "Change the last message and send it again", chat.edit)
        self.clear = _button("Clear", "Forget this conversation", chat.clear)
        self.download = widgets.HTML()
        self.model = widgets.Dropdown(options=names, description="Model")
        self.beside = widgets.Dropdown(options=[NOBODY, *names], description="Beside")
        self.show_picked(shown)
        for picker in (self.model, self.beside):
            _on_change(picker, lambda _: self._showing or chat.pick())
        self.pickers = _line(self.model, self.beside)
        self.pickers.layout.display = "flex" if len(names) > 1 else "none"
        self.upload = widgets.FileUpload(accept=".json", description="Load transcript").add_class("sc-upload")
        _on_change(self.upload, lambda files: files and chat.load(bytes(files[0]["content"])))
        self.sampling = {name: _sampling_widget(name, value) for name, value in sampling}
        for name, widget in self.sampling.items():
            _on_change(widget, partial(chat.set, name))
        # An Accordion would fold too, but the keyboard cannot reach its title.
        more = widgets.ToggleButton(description="Settings", tooltip="Show or hide sampling and loading")
        fold = widgets.VBox([*self.sampling.values(), self.upload], layout={"display": "none"}).add_class("sc-fold")
        _on_change(more, lambda open_: setattr(fold.layout, "display", "flex" if open_ else "none"))
        self.rows = [
            _line(self.input, self.outbox, self.send.add_class("sc-send"), self.stop),
            _line(self.regenerate, self.edit, self.clear, more, self.download),
            fold,
        ]

    def _heard(self, chat: Any, sent: str) -> None:
        if text := sent.rpartition(MARK)[0]:
            self.outbox.value = ""  # tells the page that it was heard
            chat.send(text)

    def fill(self, text: str) -> None:
        """Puts a text into the input, in place of what is typed there, even if the kernel has not heard of that."""
        if self.input.value == text:
            self.input.value = ""  # or setting it would tell the page nothing
        self.input.value = text

    def show_busy(self, busy: bool, talked: bool) -> None:
        """Enables what makes sense now."""
        self.send.disabled = busy
        self.stop.disabled = not busy
        self.regenerate.disabled = self.edit.disabled = busy or not talked
        self.clear.disabled = not talked and not busy

    def show_picked(self, names: list[str]) -> None:
        """Sets the pickers to the models that are shown."""
        self._showing = True
        self.model.value, self.beside.value = [*names, NOBODY][:2]
        self._showing = False

    def set_editing(self, editing: bool) -> None:
        """Whether the input holds the last message, to be sent again."""
        self.editing = editing
        self.send.description = "Send again" if editing else "Send"
        self.edit.description = "Don't edit" if editing else "Edit"

    def start_editing(self, said: str) -> None:
        """Puts the last message into the input, to be sent again."""
        self._draft = self.input.value
        self.set_editing(True)
        self.input.value = said
        self.input.focus()

    def take_back(self, said: str, *, editing: bool) -> None:
        """Puts a message that got no reply into the input, before what was typed there meanwhile."""
        typed = self.input.value
        self.set_editing(editing)
        self.fill(f"{said}\n{typed}" if typed.strip() else said)

    def leave_editing(self) -> None:
        """Takes an edit back: the input holds again what it held before."""
        if self.editing:
            self.set_editing(False)
            self.fill(self._draft)


def _on_change(widget: widgets.Widget, action: Callable[[Any], object]) -> None:
    widget.observe(lambda change: action(change["new"]), "value")


def _button(label: str, tooltip: str, action: Callable[[], None], style: str = "") -> widgets.Button:
    button = widgets.Button(description=label, tooltip=tooltip, button_style=style)
    button.on_click(lambda _: action())
    return button


def _line(*parts: widgets.Widget) -> widgets.HBox:
    return widgets.HBox(parts).add_class("sc-line")


def _sampling_widget(name: str, value: Any) -> widgets.Widget:
    """A slider where the field has one, else a box for a check mark or a number."""
    field, label = Sampling.model_fields[name], name.replace("_", " ")
    if field.annotation is bool:
        return widgets.Checkbox(value=value, description=f"{label}: {field.description}", indent=False)
    plain = {"value": value, "description": label, "style": {"description_width": "150px"}}
    slider = next((found for found in field.metadata if isinstance(found, Slider)), None)
    if slider is None:
        return widgets.IntText(**plain)
    kind = widgets.IntSlider if field.annotation is int else widgets.FloatSlider
    low, high = min(slider.low, value), max(slider.high, value)
    return kind(**plain, min=low, max=high, step=slider.step, continuous_update=False)
