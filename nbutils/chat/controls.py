"""What a person can touch in the chat widget: input, buttons, pickers, sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

NOBODY = "nobody"
MARK = "\ue000"
"""In the outbox it divides a message from a stamp that makes each one different; `widget.js` has it too."""
_LABELS = {"description_width": "150px"}


class Controls:
    """The widgets themselves; what they do is said in `nbutils.chat.widget`."""

    def __init__(self, names: list[str], model: str, beside: str, settings: dict[str, Any]) -> None:
        self.input = widgets.Textarea(
            description="Message", placeholder="Enter sends, Shift-Enter starts a new line.",
            continuous_update=False, rows=2,
        )  # fmt: skip
        self.input.add_class("sc-input")
        # A text and a click are two messages, and ipywidgets may keep the first back while the second goes out. So
        # the page writes what is to be sent here, as one; without its script, Send alone does its work.
        self.outbox = widgets.Textarea(description="Outbox", continuous_update=False)
        self.outbox.add_class("sc-outbox")
        self.send = _button("Send", "Send the message (Enter)", "primary", "sc-send")
        self.stop = _button("Stop", "End the reply that is being written", "warning", "sc-stop")
        self.regenerate = _button("Regenerate", "Another reply to the last message")
        self.edit = _button("Edit", "Change the last message and send it again")
        self.clear = _button("Clear", "Forget this conversation")
        self.download = widgets.HTML()
        self.model = widgets.Dropdown(options=names, value=model, description="Model")
        self.beside = widgets.Dropdown(options=[NOBODY, *names], value=beside, description="Beside")
        self.pickers = _line(self.model, self.beside)
        self.pickers.layout.display = "flex" if len(names) > 1 else "none"
        self.upload = widgets.FileUpload(
            accept=".json", multiple=False, description="Load transcript", layout={"width": "auto"}
        )
        self.upload.add_class("sc-upload")
        self._sampling = _sampling_widgets(settings)
        # An Accordion would fold too, but the keyboard cannot reach its title.
        self.more = widgets.ToggleButton(description="Settings", tooltip="Show or hide sampling and loading")
        fold = widgets.VBox([*self._sampling.values(), self.upload])
        fold.add_class("sc-fold")
        fold.layout.display = "none"
        self.more.observe(lambda change: setattr(fold.layout, "display", "flex" if change["new"] else "none"), "value")
        self.rows = [
            _line(self.input, self.outbox, self.send, self.stop),
            _line(self.regenerate, self.edit, self.clear, self.more, self.download),
            fold,
        ]

    def sampling(self) -> dict[str, Any]:
        """The chosen sampling settings."""
        return {name: widget.value for name, widget in self._sampling.items()}

    def on_sampling(self, callback: Callable[[str, Any], None]) -> None:
        """Calls back with name and value of a sampling setting that changes."""
        for name, widget in self._sampling.items():
            widget.observe(lambda change, name=name: callback(name, change["new"]), "value")

    def on_message(self, callback: Callable[[str], None]) -> None:
        """Calls back with a message that the page sends (Enter, or a click on Send)."""

        def hear(change: dict[str, Any]) -> None:
            if text := change["new"].rpartition(MARK)[0]:
                self.outbox.value = ""  # tells the page that it was heard
                callback(text)

        self.outbox.observe(hear, "value")

    def fill(self, text: str) -> None:
        """Puts a text into the input, whatever is typed there that the kernel has not heard of."""
        if self.input.value == text:
            self.input.value = ""  # or setting it would tell the page nothing
        self.input.value = text

    def show_sampling(self, name: str, value: Any) -> None:
        """Sets the widget of a sampling setting."""
        self._sampling[name].value = value

    def show_busy(self, busy: bool, talked: bool) -> None:
        """Enables what makes sense now."""
        self.send.disabled = busy
        self.stop.disabled = not busy
        for button in (self.regenerate, self.edit):
            button.disabled = busy or not talked
        self.clear.disabled = not talked and not busy

    def show_picked(self, names: list[str]) -> None:
        """Sets the pickers to the models that are shown."""
        self.model.value = names[0]
        self.beside.value = names[1] if len(names) > 1 else NOBODY

    def show_editing(self, editing: bool) -> None:
        """Whether the input holds the last message, to be sent again."""
        self.send.description = "Send again" if editing else "Send"
        self.edit.description = "Don't edit" if editing else "Edit"


def _button(label: str, tooltip: str, style: str = "", name: str = "") -> widgets.Button:
    button = widgets.Button(description=label, tooltip=tooltip, button_style=style)
    if name:
        button.add_class(name)
    return button


def _line(*parts: widgets.Widget) -> widgets.HBox:
    line = widgets.HBox(parts)
    line.add_class("sc-line")
    return line


def _sampling_widgets(settings: dict[str, Any]) -> dict[str, widgets.Widget]:
    def slider(name: str, low: float, high: float, step: float) -> widgets.Widget:
        kind = widgets.IntSlider if isinstance(step, int) else widgets.FloatSlider
        value = settings[name]
        return kind(
            value=value, min=min(low, value), max=max(high, value), step=step,
            description=name.replace("_", " "), continuous_update=False, style=_LABELS,
        )  # fmt: skip

    return {
        "greedy": widgets.Checkbox(value=settings["greedy"], description="greedy: the likeliest token", indent=False),
        "temperature": slider("temperature", 0.05, 2.0, 0.05),
        "top_p": slider("top_p", 0.05, 1.0, 0.05),
        "repetition_penalty": slider("repetition_penalty", 1.0, 2.0, 0.05),
        "max_new_tokens": slider("max_new_tokens", 10, 250, 10),
        "seed": widgets.BoundedIntText(value=settings["seed"], min=0, max=2**31 - 1, description="seed", style=_LABELS),
    }
