"""The chat widget: core ipywidgets around one session, or two side by side.

Replies are written by a worker thread, so that the kernel's main thread is free to hear *Stop*.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import ipywidgets as widgets

from nbutils.chat import bubbles
from nbutils.chat.columns import Columns, Load
from nbutils.chat.controls import NOBODY, Controls
from nbutils.chat.panel import Panel
from nbutils.chat.transcript import parsed_transcript
from nbutils.chat.worker import Worker
from nbutils.core.errors import UserError
from nbutils.core.sampling import Sampling

STYLE = files("nbutils.chat").joinpath("widget.css").read_text(encoding="utf-8")
SCRIPT = files("nbutils.chat").joinpath("widget.js").read_text(encoding="utf-8")


class ChatWidget:
    """Talks to `model`, one of `names`; `load` gives the model behind a name and is called once for each.

    `settings` are those of `nbutils.chat.session.ChatSession`. `root` is the widget to display. An `earlier` widget,
    closed, hands on its conversations, and what a person has picked and set there, but for arguments that have changed.
    """

    def __init__(
        self, load: Load, names: list[str], model: str, settings: dict[str, Any], beside: str = "",
        earlier: ChatWidget | None = None,
    ) -> None:  # fmt: skip
        self._given = asdict(Sampling()) | settings | {"model": model, "beside": beside}
        self._settings = earlier.as_chosen(self._given, names) if earlier else dict(self._given)
        model, beside = self._settings.pop("model"), self._settings.pop("beside")
        if model == beside:
            raise UserError(f"Both columns would show the model '{model}': give another one as beside, or none.")
        self._worker = Worker(self._failed, self._show_state)
        self._lock = threading.RLock()
        self._editing = False
        self._draft = ""  # what stood in the input before it held the message to edit
        self._picking = False
        self.controls = Controls(names, model, beside or NOBODY, self._settings)
        self.columns = Columns(load, self._settings, [model, beside] if beside else [model])
        self._style = widgets.HTML(f"<style>{STYLE}</style>")
        self._style.add_class("sc-style")
        self._notice, self._announce = widgets.HTML(), widgets.HTML()
        self._announce.add_class("sc-announce")
        parts = [
            self._style,
            self.controls.pickers,
            self.columns.box,
            self._notice,
            *self.controls.rows,
            self._announce,
        ]
        self.root = widgets.VBox(parts)
        self.root.add_class("smallchat")
        self._connect()
        if earlier:
            self.columns.take_over(earlier.columns)
        self._show_state()

    @property
    def panels(self) -> list[Panel]:
        """The columns that are shown."""
        return self.columns.panels

    @property
    def busy(self) -> bool:
        """Whether a reply is being written or a model is being loaded."""
        return self._worker.busy

    def wait(self, seconds: float | None = None) -> None:
        """Waits until the worker is idle (for tests and scripts)."""
        self._worker.wait(seconds)

    def transcript(self) -> dict[str, Any]:
        """The conversation of the first model, that of the second under `compared`."""
        return self.columns.transcript()

    def restore(self, transcript: dict[str, Any]) -> None:
        """Takes over a conversation (see `Columns.restore`). UserError where it is no transcript."""
        self.columns.restore(transcript)
        self._leave_editing()
        self._show_state()

    def close(self) -> None:
        """Stops the reply being written, frees the caches, and removes the widget wherever it is shown."""
        self._stop()
        self.wait()
        self.columns.close()
        self.root.close()

    def as_chosen(self, given: dict[str, Any], names: list[str]) -> dict[str, Any]:
        """Model, beside and settings that another call gives, with what was chosen here since the same were given."""
        shown, *beside = self.columns.names
        picked = {"model": shown, "beside": "".join(beside)}
        chosen = self._settings | {name: value for name, value in picked.items() if value in ("", *names)}
        merged = {
            name: chosen.get(name, value) if self._given.get(name) == value else value for name, value in given.items()
        }
        if merged.get("beside") != merged["model"]:
            return merged
        anew = given["beside"] != self._given["beside"] and given["model"] != given["beside"]
        return merged | ({"model": given["model"]} if anew else {"beside": ""})

    # ---- what the buttons do ----

    def _connect(self) -> None:
        controls = self.controls
        for button, action in (
            (controls.send, lambda: self._send(controls.input.value)),
            (controls.regenerate, self._regenerate),
            (controls.edit, self._edit),
            (controls.clear, self._clear),
        ):
            button.on_click(self._guarded(action))
        controls.stop.on_click(lambda _: self._stop())
        controls.upload.observe(self._guarded(self._upload), "value")
        controls.on_message(lambda text: self._guarded(lambda: self._send(text))())
        controls.on_sampling(lambda name, value: self._guarded(lambda: self._configure(name, value))())
        for picker in (controls.model, controls.beside):
            picker.observe(self._guarded(self._pick), "value")

    def _guarded(self, action: Callable[[], None]) -> Callable[..., None]:
        """A callback whose error is shown to the person, with the widget as usable as before."""

        def callback(*_: object) -> None:
            try:
                if not self.busy:  # else the notice may say what is being loaded
                    self._say("")
                action()
            except Exception as error:
                self._failed(error)

        return callback

    def _send(self, text: str) -> None:
        if not text.strip():
            return
        try:
            if self.busy:
                raise UserError("A reply is being written, or a model is being loaded; send it when that is done.")
            self._begin((lambda s: s.edit(text)) if self._editing else (lambda s: s.reply(text)), text)
        except Exception:
            self.controls.fill(text)  # the page has emptied the input
            raise

    def _regenerate(self) -> None:
        if not self.busy:
            self._begin(lambda session: session.regenerate())

    def _edit(self) -> None:
        if self.busy:
            return
        if self._editing:
            self._leave_editing()
        elif said := self.columns.said:
            self._draft = self.controls.input.value
            self._set_editing(True)
            self.controls.input.value = said[-1]
            self.controls.input.focus()

    def _clear(self) -> None:
        self._stop()
        self.wait()
        self._leave_editing()
        self.columns.clear()
        self._show_state()

    def _stop(self) -> None:
        self.columns.stop()

    def _configure(self, name: str, value: Any) -> None:
        try:
            self.columns.configure(name, value)
        except UserError:
            self.controls.show_sampling(name, self._settings[name])
            raise
        if not self.busy:
            for panel in self.panels:
                panel.show()  # what goes next depends on how long a reply may be

    def _upload(self) -> None:
        if self.controls.upload.value:
            content = bytes(self.controls.upload.value[0]["content"])
            self.controls.upload.value = ()
            if self.busy:
                raise UserError("A reply is being written; stop it first.")
            self.restore(parsed_transcript(content, "The file"))

    def _pick(self) -> None:
        """Shows the picked models. Where one picker is set to what the other column shows, the two change places."""
        if self._picking:
            return
        picked = [self.controls.model.value, self.controls.beside.value]
        self._stop()
        self.wait()
        shown = self.columns.names  # only now: a model that was being loaded is shown by now
        names = [name for name in picked if name != NOBODY]
        if picked[0] == picked[1]:
            names = shown[::-1]
        self._show_picked(names)
        if names == shown:
            self._say(f"{shown[0]} is shown already." if picked[0] == picked[1] else "")
            return
        self._worker.start(
            lambda: self._change_panels(names), begun=lambda: self._show_busy(f"loading {' and '.join(names)} …")
        )

    # ---- the worker ----

    def _begin(self, start: Callable[[Any], Iterator[str]], said: str | None = None) -> None:
        edited, panels = self._editing, list(self.panels)
        marks = [panel.session.bookmark() for panel in panels]
        # Refuses what cannot be sent, before anything changes.
        streams = self.columns.start(start)
        for panel, pieces in zip(panels, streams, strict=True):
            panel.begin(pieces, said, edited=edited)
        if said is not None:
            self._set_editing(False)
            self.controls.fill("")

        def job() -> None:
            try:
                self._write()
            except Exception:
                for panel, mark in zip(panels, marks, strict=True):  # in both columns the same was said, or nothing
                    panel.go_back(mark)
                if said is not None:
                    typed = self.controls.input.value
                    self._set_editing(edited)
                    # Neither the message that gets no reply is lost, nor what was typed behind it.
                    self.controls.fill(f"{said}\n{typed}" if typed.strip() else said)
                raise

        self._worker.start(job, begun=lambda: self._show_busy(""))

    def _write(self) -> None:
        """Writes the replies of all panels, token by token in turn."""
        writing = list(self.panels)
        while writing:
            writing = [panel for panel in writing if panel.advance()]
        replies = [(panel.name, panel.session.messages[-1]["content"][:2000]) for panel in self.panels]
        if len(replies) == 1:
            replies = [("The model", replies[0][1])]
        self._announce.value = bubbles.announcement(". ".join(f"{name} said: {reply}" for name, reply in replies))

    def _change_panels(self, names: list[str]) -> None:
        try:
            self.columns.show(names)
        except Exception:
            self._show_picked(self.columns.names)
            raise
        self._say("")

    # ---- what is shown ----

    def _show_picked(self, names: list[str]) -> None:
        self._picking = True
        self.controls.show_picked(names)
        self._picking = False

    def _leave_editing(self) -> None:
        if self._editing:
            self._set_editing(False)
            self.controls.fill(self._draft)

    def _set_editing(self, editing: bool) -> None:
        self._editing = editing
        self.controls.show_editing(editing)

    def _show_state(self) -> None:
        with self._lock:
            busy = self.busy
            self.controls.show_busy(busy, talked=bool(self.columns.said))
            if not busy:
                self.controls.download.value = bubbles.download_link(self.transcript())

    def _show_busy(self, remark: str) -> None:
        self._say(remark)
        self._show_state()

    def _say(self, text: str) -> None:
        self._notice.value = bubbles.notice(text)

    def _failed(self, error: Exception) -> None:
        """Shows an error: a UserError as its sentence, any other with its type, and its traceback on stderr."""
        if isinstance(error, UserError):
            self._say(str(error))
        else:
            self._say(f"{type(error).__name__}: {error}")
            traceback.print_exception(error)
