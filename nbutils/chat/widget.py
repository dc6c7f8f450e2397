"""The chat widget: core ipywidgets around one session, or two side by side.

Replies are written by a worker thread, so that the kernel's main thread is free to hear *Stop*.
"""

from __future__ import annotations

import json
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
from nbutils.chat.transcript import check_messages
from nbutils.core.errors import UserError
from nbutils.core.sampling import Sampling

STYLE = files("nbutils.chat").joinpath("widget.css").read_text(encoding="utf-8")
SCRIPT = files("nbutils.chat").joinpath("widget.js").read_text(encoding="utf-8")
Load = Callable[[str], LoadedModel]


class ChatWidget:
    """Talks to `model`, one of `names`; `load` gives the model behind a name and is called once for each.

    `settings` are those of `nbutils.chat.session.ChatSession`. `root` is the widget to display.
    """

    def __init__(self, load: Load, names: list[str], model: str, settings: dict[str, Any], beside: str = "") -> None:
        self._load_model = load
        self._loaded: dict[str, LoadedModel] = {}
        self._settings = asdict(Sampling()) | settings
        self._worker: threading.Thread | None = None
        self._working = threading.Event()
        self._lock = threading.RLock()
        self._editing = False
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
        self._show_state()

    @property
    def busy(self) -> bool:
        """Whether a reply is being written or a model is being loaded."""
        return self._working.is_set()

    def wait(self, seconds: float | None = None) -> None:
        """Waits until the worker is idle (for tests and scripts)."""
        worker = self._worker
        if worker is not None:
            worker.join(seconds)

    def transcript(self) -> dict[str, Any]:
        """The conversation of the first model, that of the second under `compared`."""
        first, *others = ({"model": panel.name, **panel.session.transcript()} for panel in self.panels)
        return {"schema": 1, **first, "compared": others}

    def restore(self, transcript: dict[str, Any]) -> None:
        """Takes over a conversation, in both columns."""
        check_messages(transcript.get("messages"), "the transcript")
        for panel in self.panels:
            panel.session.restore(transcript)
            panel.show()
        self._show_state()

    def close(self) -> None:
        """Stops the reply being written, frees the caches, and removes the widget wherever it is shown."""
        self._stop()
        self.wait()
        for panel in self.panels:
            panel.session.close()
        self.root.close()

    # ---- what the buttons do ----

    def _connect(self) -> None:
        controls = self.controls
        for button, action in (
            (controls.send, self._send),
            (controls.regenerate, self._regenerate),
            (controls.edit, self._edit),
            (controls.clear, self._clear),
        ):
            button.on_click(self._guarded(action))
        controls.stop.on_click(lambda _: self._stop())
        controls.upload.observe(self._guarded(self._upload), "value")
        controls.on_sampling(self._guarded(self._configure))
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

    def _send(self) -> None:
        text = self.controls.input.value
        if self.busy or not text.strip():
            return
        start = (lambda s: s.edit(text)) if self._editing else (lambda s: s.reply(text))
        self._begin(start)
        self._set_editing(False)
        self.controls.input.value = ""

    def _regenerate(self) -> None:
        if not self.busy:
            self._begin(lambda session: session.regenerate())

    def _edit(self) -> None:
        if self.busy:
            return
        if self._editing:
            self._set_editing(False)
            self.controls.input.value = ""
            return
        sent = [m["content"] for m in self.panels[0].session.messages if m["role"] == "user"]
        if sent:
            self._set_editing(True)
            self.controls.input.value = sent[-1]
            self.controls.input.focus()

    def _clear(self) -> None:
        self._stop()
        self.wait()
        self._set_editing(False)
        for panel in self.panels:
            panel.session.clear()
            panel.show()
        self._show_state()

    def _stop(self) -> None:
        for panel in self.panels:
            panel.session.stop()

    def _configure(self) -> None:
        chosen = self.controls.sampling()
        for panel in self.panels:
            panel.session.configure(**chosen)
        self._settings |= chosen

    def _upload(self) -> None:
        if self.controls.upload.value:
            content = bytes(self.controls.upload.value[0]["content"])
            self.controls.upload.value = ()
            if self.busy:
                raise UserError("A reply is being written; stop it first.")
            try:
                transcript = json.loads(content)
            except ValueError as error:
                raise UserError(f"The file is no transcript ({error}); choose one that was saved here.") from error
            self.restore(transcript if isinstance(transcript, dict) else {})

    def _pick(self) -> None:
        names = [self.controls.model.value]
        if self.controls.beside.value != NOBODY:
            names.append(self.controls.beside.value)
        if names == [panel.name for panel in self.panels]:
            return
        self._stop()
        self.wait()
        self._work(lambda: self._change_panels(names), f"loading {' and '.join(names)} …")

    # ---- the worker ----

    def _begin(self, start: Callable[[Any], Iterator[str]]) -> None:
        streams = [
            start(panel.session) for panel in self.panels
        ]  # refuses what cannot be sent, before anything changes
        for panel, pieces in zip(self.panels, streams, strict=True):
            panel.begin(pieces)
        self._work(self._write, "")

    def _write(self) -> None:
        """Writes the replies of all panels, token by token in turn."""
        writing = list(self.panels)
        while writing:
            writing = [panel for panel in writing if panel.advance()]
        reply = self.panels[0].session.messages[-1]["content"]
        self._announce.value = bubbles.announcement(f"The model said: {reply[:2000]}")

    def _change_panels(self, names: list[str]) -> None:
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
        self._say("")

    def _work(self, job: Callable[[], None], remark: str) -> None:
        def run() -> None:
            try:
                job()
            except Exception as error:
                for panel in self.panels:
                    panel.begin(iter(()))  # lets go of a reply that another panel's error has cut short
                    panel.show()
                self._failed(error)
            finally:
                self._working.clear()  # before the button is enabled: a click on it must not find a worker still busy
                self._show_state()

        self.wait()  # the worker before may still be showing that it is done
        self._working.set()
        self._say(remark)
        self._show_state()
        self._worker = threading.Thread(target=run, name="chat-writes", daemon=True)
        self._worker.start()

    # ---- what is shown ----

    def _panel(self, name: str) -> Panel:
        if name not in self._loaded:
            self._loaded[name] = self._load_model(name)
        return Panel(self._loaded[name], self._settings)

    def _set_editing(self, editing: bool) -> None:
        self._editing = editing
        self.controls.show_editing(editing)

    def _show_state(self) -> None:
        with self._lock:
            busy = self.busy
            self.controls.show_busy(busy, talked=any(panel.session.messages for panel in self.panels))
            if not busy:
                self.controls.download.value = bubbles.download_link(self.transcript())

    def _say(self, text: str) -> None:
        self._notice.value = bubbles.notice(text)

    def _failed(self, error: Exception) -> None:
        """Shows an error: a UserError as its sentence, any other with its type, and its traceback on stderr."""
        if isinstance(error, UserError):
            self._say(str(error))
        else:
            self._say(f"{type(error).__name__}: {error}")
            traceback.print_exception(error)
