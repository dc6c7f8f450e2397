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
from nbutils.chat.controls import NOBODY, Controls
from nbutils.chat.models import LoadedModel
from nbutils.chat.panel import Panel
from nbutils.chat.transcript import checked_transcript, parsed_transcript, spoken
from nbutils.chat.worker import Worker
from nbutils.core.errors import UserError
from nbutils.core.sampling import Sampling

STYLE = files("nbutils.chat").joinpath("widget.css").read_text(encoding="utf-8")
SCRIPT = files("nbutils.chat").joinpath("widget.js").read_text(encoding="utf-8")
Load = Callable[[str], LoadedModel]


class ChatWidget:
    """Talks to `model`, one of `names`; `load` gives the model behind a name and is called once for each.

    `settings` are those of `nbutils.chat.session.ChatSession`. `root` is the widget to display. An `earlier` widget,
    closed, hands on its conversations, and what a person has picked and set there, but for arguments that have changed.
    """

    def __init__(
        self, load: Load, names: list[str], model: str, settings: dict[str, Any], beside: str = "",
        earlier: ChatWidget | None = None,
    ) -> None:  # fmt: skip
        self._load_model = load
        self._loaded: dict[str, LoadedModel] = {}
        self._given = asdict(Sampling()) | settings | {"model": model, "beside": beside}
        self._settings = earlier.as_chosen(self._given, names) if earlier else dict(self._given)
        model, beside = self._settings.pop("model"), self._settings.pop("beside")
        if model == beside:
            raise UserError(f"Both columns would show the model '{model}': give another one as beside, or none.")
        self._worker = Worker(self._failed, self._show_state)
        self._lock = threading.RLock()
        self._editing = False
        self._picking = False
        self.controls = Controls(names, model, beside or NOBODY, self._settings)
        self.panels = [self._panel(name) for name in ([model, beside] if beside else [model])]
        self._style = widgets.HTML(f"<style>{STYLE}</style>")
        self._style.add_class("sc-style")
        self._columns = widgets.HBox([panel.box for panel in self.panels])
        self._columns.add_class("sc-columns")
        self._notice, self._announce = widgets.HTML(), widgets.HTML()
        self._announce.add_class("sc-announce")
        parts = [self._style, self.controls.pickers, self._columns, self._notice, *self.controls.rows, self._announce]
        self.root = widgets.VBox(parts)
        self.root.add_class("smallchat")
        self._connect()
        if earlier:
            self._take_over(earlier)
        self._show_state()

    @property
    def busy(self) -> bool:
        """Whether a reply is being written or a model is being loaded."""
        return self._worker.busy

    def wait(self, seconds: float | None = None) -> None:
        """Waits until the worker is idle (for tests and scripts)."""
        self._worker.wait(seconds)

    def transcript(self) -> dict[str, Any]:
        """The conversation of the first model, that of the second under `compared`."""
        first, *others = ({"model": panel.name, **panel.session.transcript()} for panel in self.panels)
        return {"schema": 1, **first, "compared": others}

    def restore(self, transcript: dict[str, Any]) -> None:
        """Takes over a conversation, in both columns. UserError where it is no transcript."""
        transcript = checked_transcript(transcript, "the transcript")
        for panel in self.panels:
            panel.session.restore(transcript)
            panel.show()
        self._leave_editing()
        self._show_state()

    def close(self) -> None:
        """Stops the reply being written, frees the caches, and removes the widget wherever it is shown."""
        self._stop()
        self.wait()
        for panel in self.panels:
            panel.session.close()
        self.root.close()

    def as_chosen(self, given: dict[str, Any], names: list[str]) -> dict[str, Any]:
        """Model, beside and settings that another call gives, with what was chosen here since the same were given."""
        shown = [panel.name for panel in self.panels]
        picked = {"model": shown[0], "beside": shown[1] if len(shown) > 1 else ""}
        chosen = self._settings | {name: value for name, value in picked.items() if value in ("", *names)}
        merged = {
            name: chosen.get(name, value) if self._given.get(name) == value else value for name, value in given.items()
        }
        return merged | ({"beside": ""} if merged.get("beside") == merged["model"] else {})

    def _take_over(self, earlier: ChatWidget) -> None:
        conversations = {panel.name: spoken(panel.session.transcript()) for panel in earlier.panels}
        for panel in self.panels:
            panel.session.restore(conversations.get(panel.name, conversations[earlier.panels[0].name]))
            panel.show()

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
            return
        sent = [m["content"] for m in self.panels[0].session.messages if m["role"] == "user"]
        if sent:
            self._set_editing(True)
            self.controls.input.value = sent[-1]
            self.controls.input.focus()

    def _clear(self) -> None:
        self._stop()
        self.wait()
        self._leave_editing()
        for panel in self.panels:
            panel.session.clear()
            panel.show()
        self._show_state()

    def _stop(self) -> None:
        for panel in self.panels:
            panel.session.stop()

    def _configure(self, name: str, value: Any) -> None:
        before = self._settings[name]
        try:
            for panel in self.panels:
                panel.session.configure(**{name: value})
        except UserError:  # one of two models may refuse what the other took
            for panel in self.panels:
                panel.session.configure(**{name: before})
            self.controls.show_sampling(name, before)
            raise
        self._settings[name] = value

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
        shown = [panel.name for panel in self.panels]  # only now: a model that was being loaded is shown by now
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
        streams = [start(panel.session) for panel in panels]
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
                    self._set_editing(edited)
                    self.controls.fill(said)  # the message that gets no reply is not lost
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
            self._pick_panels(names)
        except Exception:
            self._show_picked([panel.name for panel in self.panels])
            raise
        self._say("")

    def _pick_panels(self, names: list[str]) -> None:
        transcript = self.panels[0].session.transcript()
        before = {panel.name: panel for panel in self.panels}
        panels = []
        for name in names:
            panel = before.pop(name, None) or self._panel(name)
            if not panel.session.messages:
                panel.session.restore(transcript)
                panel.show()
            panels.append(panel)
        for panel in before.values():
            panel.session.close()
        self.panels = panels
        self._columns.children = [panel.box for panel in panels]

    # ---- what is shown ----

    def _panel(self, name: str) -> Panel:
        if name not in self._loaded:
            self._loaded[name] = self._load_model(name)
        return Panel(self._loaded[name], self._settings)

    def _show_picked(self, names: list[str]) -> None:
        self._picking = True
        self.controls.show_picked(names)
        self._picking = False

    def _leave_editing(self) -> None:
        if self._editing:
            self._set_editing(False)
            self.controls.fill("")

    def _set_editing(self, editing: bool) -> None:
        self._editing = editing
        self.controls.show_editing(editing)

    def _show_state(self) -> None:
        with self._lock:
            busy = self.busy
            self.controls.show_busy(busy, talked=any(panel.session.messages for panel in self.panels))
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
