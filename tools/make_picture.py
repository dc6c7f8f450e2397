"""README's picture, docs/demo.png: the demo's loss curve beside a conversation with its model. `make docs` draws it."""

from __future__ import annotations

import textwrap
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from nbutils.core.files import read_json

COLOURS = {"user": "#ddf4ff", "assistant": "#f1f3f5"}
TURNS = 3


def draw(run: Path, target: Path) -> None:
    """Writes the picture of a finished run to `target`."""
    figure = Figure(figsize=(11, 4.0), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    left = figure.add_axes((0.0, 0.0, 0.62, 1.0))
    left.imshow(imread(run / "metrics" / "figures" / "loss.png"))
    left.axis("off")
    right = figure.add_axes((0.63, 0.02, 0.36, 0.94))
    right.axis("off")
    right.set_xlim(0, 1)
    right.set_ylim(1, 0)
    place = 0.04
    for message in read_json(run / "chat" / "transcript.json")["messages"][: 2 * TURNS]:
        text = textwrap.fill(message["content"], 40, max_lines=3, placeholder=" …")
        own = message["role"] == "user"
        box = {"boxstyle": "round,pad=0.5", "facecolor": COLOURS[message["role"]], "edgecolor": "none"}
        right.text(
            0.98 if own else 0.02,
            place,
            text,
            ha="right" if own else "left",
            va="top",
            fontsize=9,
            color="#1f2328",
            bbox=box,
        )
        place += 0.085 + 0.052 * (text.count("\n") + 1)
    figure.savefig(target)
