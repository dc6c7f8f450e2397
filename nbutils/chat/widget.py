"""The chat widget: core ipywidgets around one session, or two side by side.

Replies are written by a worker thread, so that the kernel's main thread is free to hear *Stop*.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from functools import cache, wraps
from importlib.resources import files
from typing import Any

import ipywidgets as widgets

from nbutils.chat import markup
from nbutils.chat.models import LoadedModel
from nbutils.chat.parts import NOBODY, Controls, Panel
from nbutils.chat.session import BUSY
from nbutils.chat.transcript import Transcript, checked_transcript
from nbutils.core.chat_engine.sampling import Sampling
from nbutils.core.errors import UserError
from nbutils.core.files import Json

STYLE = files("nbutils.chat").joinpath("widget.css").read_text(encoding="utf-8")
SCRIPT = files("nbutils.chat").joinpath("widget.js").read_text(encoding="utf-8")

Load = Callable[[str], LoadedModel]


def _reported(action: Callable[..., None]) -> Callable[..., None]:
    """An action whose error is shown to the person, with the widget as usable as before; a bug also on stderr."""

    @wraps(action)
    def reported(chat: ChatWidget, *arguments: Any) -> None:
        try:
            if not chat.busy:  # else the notice may say what is being loaded
                chat.say("")
            action(chat, *arguments)
        except Exception as error:
            chat.say(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
            if not isinstance(error, UserError):
                traceback.print_exception(error)

    return reported


class ChatWidget:
    """Talks to `model`, one of `names`; `load` gives the model behind a name and is called once for each.

    `settings` are those of `nbutils.chat.session.ChatSession`. `root` is the widget to display. Of `earlier`, which
    this one replaces, it keeps the conversation always, the rest where the same is asked for as before.
    """

    def __init__(
        self, load: Load, names: list[str], model: str, settings: Json, beside: str = "",
        earlier: ChatWidget | None = None,
    ) -> None:  # fmt: skip
        if model == beside:
            raise UserError(f"Both columns would show the model '{model}': give another one as beside, or none.")
        self._asked = names, model, beside, settings
        shown = [model, beside] if beside else [model]
        self._settings = settings
        self._sampling = Sampling(**{name: value for name, value in settings.items() if name in Sampling.model_fields})
        if earlier and earlier._asked == self._asked:
            shown, self._sampling = earlier.shown, earlier._sampling
        self._load = cache(load)
        self._thread: threading.Thread | None = None
        self.busy = False
        """Whether a reply is being written or a model is being loaded."""
        self.notice = widgets.HTML()
        """What is being done, or what went wrong."""
        self.panels = [self._panel(name) for name in shown]
        self.controls = Controls(self, names, shown, self._sampling)
        self._columns = widgets.HBox([panel.box for panel in self.panels]).add_class("sc-columns")
        self.announcement = widgets.HTML().add_class("sc-announce")
        style = widgets.HTML(f"<style>{STYLE}</style>").add_class("sc-style")
        rows = [self.controls.pickers, self._columns, self.notice, *self.controls.rows]
        self.root = widgets.VBox([style, *rows, self.announcement]).add_class("smallchat")
        if earlier:
            self.restore(earlier.transcript())
        self._show_state()

    @property
    def shown(self) -> list[str]:
        """The models that are shown, from left to right."""
        return [panel.name for panel in self.panels]

    def wait(self, seconds: float | None = None) -> None:
        """Waits until nothing is being written or loaded."""
        if self._thread is not None:
            self._thread.join(seconds)

    def transcript(self) -> Json:
        """The conversation of the first model, that of the second under `compared`."""
        talks = [{"model": panel.name} | panel.session.transcript() for panel in self.panels]
        return {**talks[0], "compared": talks[1:]}

    def restore(self, transcript: Json | Transcript) -> None:
        """Takes over a conversation: each column what its own model has said there, else what the first one said.

        UserError where it is no transcript; then everything stays as it was.
        """
        first = checked_transcript(transcript, "the transcript")
        by_model = {talk.model: talk for talk in (*first.compared, first)}
        for panel in self.panels:
            panel.session.restore(by_model.get(panel.name, first))
            panel.show()
        self.controls.leave_editing()
        self._show_state()

    def close(self) -> None:
        """Stops the reply being written, frees the caches, and removes the widget wherever it is shown."""
        self._halt()
        for panel in self.panels:
            panel.session.close()
        self.root.close()

    # ---- what a person does ----

    @_reported
    def send(self, text: str) -> None:
        """Sends a message, or the last one again if that is being edited."""
        if not text.strip():
            return
        try:
            if self.busy:
                raise UserError("A reply is being written, or a model is being loaded; send it when that is done.")
            self._begin("edit" if self.controls.editing else "reply", text)
        except Exception:
            self.controls.fill(text)  # the page has emptied the input
            raise

    @_reported
    def regenerate(self) -> None:
        """Has another reply written to the last message."""
        if not self.busy:
            self._begin("regenerate")

    @_reported
    def edit(self) -> None:
        """Puts the last message into the input, to be sent again; or takes that back."""
        if self.controls.editing:
            self.controls.leave_editing()
        elif not self.busy:
            session = self.panels[0].session
            self.controls.start_editing(session.messages[session.last_user()]["content"])

    @_reported
    def clear(self) -> None:
        """Forgets the conversation."""
        self._halt()
        self.restore({"messages": []})

    def say(self, remark: str) -> None:
        """Shows a remark; nothing takes it away."""
        self.notice.value = markup.notice(remark)

    def stop(self) -> None:
        """Ends the replies that are being written."""
        for panel in self.panels:
            panel.session.stop()

    @_reported
    def set(self, name: str, value: Any) -> None:
        """Sets a sampling setting, for all models; where one refuses it, it stays as it was."""
        changed = self._sampling.changed(**{name: value})
        try:
            for panel in self.panels:
                panel.session.engine.window(changed)  # refuses a reply that is too long, before any model takes it
            self._sampling = changed
        finally:
            self.controls.sampling[name].value = getattr(self._sampling, name)
        for panel in self.panels:
            panel.session.sampling = changed
            if not self.busy:
                panel.show()  # what goes next depends on how long a reply may be

    @_reported
    def load(self, content: bytes) -> None:
        """Takes over the conversation in a file's content."""
        self.controls.upload.value = ()
        if self.busy:
            raise UserError(BUSY)
        self.wait()  # until a reply is shown whose button is enabled already
        self.restore(checked_transcript(content, "The file"))

    @_reported
    def pick(self) -> None:
        """Shows the picked models. Where one picker is set to what the other column shows, the two change places."""
        picked = [self.controls.model.value, self.controls.beside.value]
        self._halt()
        shown = self.shown  # only now: a model that was being loaded is shown by now
        same = picked[0] == picked[1]
        names = shown[::-1] if same else [name for name in picked if name != NOBODY]
        self.controls.show_picked(names)
        if names == shown:
            self.say(f"{shown[0]} is shown already." if same else "")
        else:
            self._in_background(lambda: self._change_panels(names), f"loading {' and '.join(names)} …")

    # ---- the worker ----

    def _in_background(self, job: Callable[[], None], remark: str = "") -> None:
        """Does a job in a thread of its own, once the one before has shown that it is done."""
        self.wait()
        self.busy = True
        self.say(remark)
        self._show_state()
        self._thread = threading.Thread(target=self._finish, args=(job,), name="chat-writes", daemon=True)
        self._thread.start()

    @_reported
    def _finish(self, job: Callable[[], None]) -> None:
        try:
            job()
        finally:
            self.busy = False  # before the button is enabled: a click on it must not find a worker still busy
            self._show_state()

    def _halt(self) -> None:
        self.stop()
        self.wait()

    def _begin(self, action: str, *said: str) -> None:
        """Writes the replies of all panels; where nothing new was said the old ones stay meanwhile.

        `action` is the session's method that starts a reply.
        """
        before, edited, panels = self.transcript(), self.controls.editing, self.panels
        # What cannot be sent is refused here.
        writers = [panel.write(getattr(panel.session, action)(*said)) for panel in panels]
        if said:
            for panel in panels:
                panel.show_waiting(*said, edited=edited)
            self.controls.set_editing(False)
            self.controls.fill("")

        def write() -> None:
            writing = writers
            try:
                while writing:  # token by token in turn
                    writing = [writer for writer in writing if next(writer, False)]
            except Exception:
                for writer in writers:
                    writer.close()
                self.restore(before)  # in every column, though one alone failed
                if said:
                    self.controls.take_back(*said, editing=edited)
                raise
            told = (f"{panel.name} said: {panel.session.messages[-1]['content'][:2000]}" for panel in panels)
            self.announcement.value = markup.announcement(". ".join(told))

        self._in_background(write)

    def _panel(self, name: str, talk: Json | None = None) -> Panel:
        panel = Panel(self._load(name), self._settings | self._sampling.model_dump())
        if talk:
            panel.session.restore(talk)
        return panel

    def _change_panels(self, names: list[str]) -> None:
        """Shows these models; a new one takes over the conversation of the first column.

        Where one cannot be loaded everything stays as it was.
        """
        talk = self.panels[0].session.transcript()
        before = {panel.name: panel for panel in self.panels}
        try:
            panels = [before.get(name) or self._panel(name, talk) for name in names]
        except Exception:
            self.controls.show_picked(self.shown)
            raise
        for name in before.keys() - names:
            before[name].session.close()
        for panel in panels:
            panel.session.sampling = self._sampling  # changed while a model was loaded, perhaps
            panel.show()
        self.panels = panels
        self._columns.children = [panel.box for panel in panels]
        self.say("")

    def _show_state(self) -> None:
        busy = self.busy
        self.controls.show_busy(busy, talked=self.panels[0].session.context.used > 0)
        if not busy:
            self.controls.download.value = markup.download_link(self.transcript())
