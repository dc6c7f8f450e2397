"""The models that a chat widget shows: a column for each, and the conversation that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import ipywidgets as widgets

from nbutils.chat.models import LoadedModel
from nbutils.chat.panel import Panel
from nbutils.chat.session import ChatSession
from nbutils.chat.transcript import checked_transcript, spoken
from nbutils.core.errors import UserError
from nbutils.core.sampling import Sampling

Load = Callable[[str], LoadedModel]


class Columns:
    """One panel for each model that is shown. `load` gives the model behind a name and is called once for each.

    `settings` are those of every session, kept up to date by `configure`. `box` is the widget to display.
    """

    def __init__(self, load: Load, settings: dict[str, Any], names: list[str]) -> None:
        self.settings = settings
        self._load = load
        self._loaded: dict[str, LoadedModel] = {}
        self.panels = [self._panel(name) for name in names]
        self.box = widgets.HBox([panel.box for panel in self.panels])
        self.box.add_class("sc-columns")

    @property
    def names(self) -> list[str]:
        """The models that are shown, from left to right."""
        return [panel.name for panel in self.panels]

    @property
    def said(self) -> list[str]:
        """What the person has said in the first column."""
        return [m["content"] for m in self.panels[0].session.messages if m["role"] == "user"]

    def show(self, names: list[str]) -> None:
        """Shows these models, each once; a new one takes over the conversation of the first column.

        Where one cannot be loaded everything stays as it was.
        """
        transcript = self.panels[0].session.transcript()
        before = {panel.name: panel for panel in self.panels}
        panels = []
        for name in names:
            panel = before.pop(name, None)
            if panel is None:
                panel = self._panel(name)
                panel.session.restore(transcript)
            panels.append(panel)
        for panel in before.values():
            panel.session.close()
        self.panels = panels
        for panel in panels:  # a setting may have changed while a model was loaded
            panel.session.configure(**{name: self.settings[name] for name in asdict(Sampling())})
            panel.show()
        self.box.children = [panel.box for panel in panels]

    def configure(self, name: str, value: Any) -> None:
        """Changes a sampling setting. UserError where one model refuses it; then none has taken it."""
        try:
            for panel in self.panels:
                panel.session.configure(**{name: value})
        except UserError:
            for panel in self.panels:
                panel.session.configure(**{name: self.settings[name]})
            raise
        self.settings[name] = value

    def transcript(self) -> dict[str, Any]:
        """The conversation of the first model, that of the second under `compared`."""
        first, *others = ({"model": panel.name, **panel.session.transcript()} for panel in self.panels)
        return {"schema": 1, **first, "compared": others}

    def restore(self, transcript: dict[str, Any]) -> None:
        """Takes over a conversation: each column what its own model has said there, else what the first one said.

        UserError where it is no transcript; then everything stays as it was.
        """
        first = checked_transcript(transcript, "the transcript")
        compared = first.get("compared")
        others = [checked_transcript(o, "the transcript") for o in (compared if isinstance(compared, list) else [])]
        by_model = {str(talk.get("model")): talk for talk in (*others, first)}
        for panel in self.panels:
            panel.session.restore(by_model.get(panel.name, first))
            panel.show()

    def take_over(self, earlier: Columns) -> None:
        """Goes on with the conversations of columns that were shown before, without a system message of their own."""
        talks = {panel.name: panel.session.transcript() for panel in earlier.panels}
        if earlier.settings.get("system"):
            talks = {name: spoken(talk) for name, talk in talks.items()}
        for panel in self.panels:
            panel.session.restore(talks.get(panel.name, talks[earlier.names[0]]))
            panel.show()

    def start(self, begin: Callable[[ChatSession], Iterator[str]]) -> list[Iterator[str]]:
        """A reply in each column; UserError where one refuses it, before anything has changed."""
        return [begin(panel.session) for panel in self.panels]

    def stop(self) -> None:
        """Ends the replies that are being written."""
        for panel in self.panels:
            panel.session.stop()

    def clear(self) -> None:
        """Forgets the conversation."""
        for panel in self.panels:
            panel.session.clear()
            panel.show()

    def close(self) -> None:
        """Frees the caches."""
        for panel in self.panels:
            panel.session.close()

    def _panel(self, name: str) -> Panel:
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return Panel(self._loaded[name], self.settings)
