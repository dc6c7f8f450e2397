"""What `context_extension: auto` stands for: the best of notebook 04's context curve, `dynamic` where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbutils.core.files import read_json, shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AUTO = "auto"
KNOWN = ("dynamic", "yarn", "linear", "none")
"""As `nbutils.core.rotation` has them, which imports torch: `--explain` and a run with nothing to do come here too."""

DEFAULT = "dynamic"
"""The reference's."""


def chosen_extension(asked: str, run: Path | None) -> tuple[str, str]:
    """The context extension for a model of that run (None: of no run), and a line that says why it was chosen."""
    if asked != AUTO:
        return asked, f"context extension: {asked}, as asked"
    best = _best(run / "evaluate" / "results.json") if run is not None else None
    if run is not None and best is not None:
        return best, f"context extension: {best}, the best of the context curve in {shown(run / 'evaluate')}"
    return DEFAULT, f"context extension: {DEFAULT}, since no context curve of notebook 04 says what suits this model"


def in_effect(chosen: str, why: str, model: PreTrainedModel) -> str:
    """The line of `chosen_extension`, or that this model cannot take any."""
    from nbutils.core.rotation import can_extend

    if chosen == "none" or can_extend(model):
        return why
    return f"context extension: none, since this model's position encoding cannot be extended ({chosen} was chosen)"


def run_of(place: Path) -> Path | None:
    """The run that a model's folder belongs to, or the folder itself where it is a run; None outside every run."""
    return next((folder for folder in (place, *place.parents) if (folder / "train" / "stage.json").is_file()), None)


def _best(results: Path) -> str | None:
    """The curve's best extension; None where there is no curve, or none that this version knows."""
    try:
        found: Any = read_json(results)["context_curve"]["best"]
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return None
    return found if found in KNOWN else None
