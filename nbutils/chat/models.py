"""The models that one can talk to: those of a run, peers, folders, GGUF files, hub ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nbutils.core.chatml import IM_END, IM_START, add_chatml
from nbutils.core.errors import UserError
from nbutils.core.files import resolve, shown
from nbutils.core.hardware import choose_device, device_report
from nbutils.core.models import load_model, raw_tokenizer, without_loading_bar
from nbutils.core.record import trained_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, its tokenizer, and one line that says what and where it is."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    line: str


def choices(run: Path, peers: Sequence[str] = ()) -> dict[str, str]:
    """Name → folder, file or hub id of every model that a run offers: final, checkpoints newest first, base, peers."""
    named = {"final": _final(run), "base": run / "train" / "base"}
    found = {name: str(folder) for name, folder in named.items() if (folder / "config.json").is_file()}
    steps = sorted((run / "train" / "checkpoints").glob("step-*/config.json"), reverse=True)
    found |= {path.parent.name: str(path.parent) for path in steps}
    return found | {peer: peer for peer in peers}


def _final(run: Path) -> Path:
    """The trained model; of a paused training (`--allow-paused`) its newest checkpoint's."""
    try:
        return trained_model(run)
    except UserError:
        return run / "train" / "final"


def located(name: str, run: Path | None = None) -> str:
    """The folder, file or hub id behind a name: one of `choices`, a model's folder, or a run's (its final model)."""
    if run is not None and name in (known := choices(run)):
        return known[name]
    folder = resolve(name)
    if run is not None and not folder.exists() and name in ("final", "base"):
        raise UserError(f"{shown(run / 'train' / name)} holds no model; run notebooks/02_train_sft.ipynb first.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        for inside in (_final(folder), folder / "final"):
            if (inside / "config.json").is_file():
                return str(inside)
        offered = ", ".join(choices(folder)) if (folder / "train").is_dir() else "none"
        raise UserError(
            f"{shown(folder)} holds no model (no config.json; models found below it: {offered}); "
            "give a model's folder, for example runs/demo/train/final."
        )
    return name


def load(name: str, run: Path | None = None) -> LoadedModel:
    """Loads a model (`name`, or `id@revision` from the hub) for talking: CUDA of compute capability 7.0 or newer, else
    MPS, else CPU; float32.

    A tokenizer without ChatML gets it. UserError where the model cannot be found or read.
    """
    place, revision = located(name, run), ""
    if not resolve(place).exists():  # a hub's id may name a revision; a folder may have an @ of its own
        place, _, revision = place.partition("@")
    with without_loading_bar():
        model, tokenizer = load_model(place, revision), raw_tokenizer(place, revision)
    if not {IM_START, IM_END} <= tokenizer.get_vocab().keys():
        add_chatml(tokenizer, model)
    device, why = choose_device(device_report())
    parameters = sum(p.numel() for p in model.parameters())
    whole = name if name != "final" or Path(place).name == name else f"{name} so far ({Path(place).name})"
    return LoadedModel(name, model.to(device).eval(), tokenizer, f"{whole}: {parameters:,} parameters, {why}")
