"""What notebook 05 can be asked to do, and which context extension suits a model."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, create_model

from nbutils.core.chat_engine.sampling import Sampling
from nbutils.core.chat_engine.window import EXTENSIONS, can_extend
from nbutils.core.files import Json, read_json, resolve, shown
from nbutils.core.run.layout import Run, is_run_model
from nbutils.core.run.models import files_of
from nbutils.core.settings import OUTSIDE, STEERING
from nbutils.core.settings import Settings as BaseSettings
from nbutils.core.stages import maker

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AUTO = "auto"
"""Stands for the best extension of notebook 04's context curve, DEFAULT where there is none."""

DEFAULT = "dynamic"
"""The reference's."""

_fields: Json = {
    name: (Annotated[field.annotation, Field(description=field.description), *field.metadata], ...)
    for name, field in Sampling.model_fields.items()
}
_SamplingSettings: Any = create_model("_SamplingSettings", __base__=BaseSettings, **_fields)


class ChatSettings(_SamplingSettings, BaseSettings):
    """Parameters of the chat stage, those of `Sampling` among them; the notebook's parameters cell explains them."""

    model: Annotated[str, Field(min_length=1)]
    compare_with: str
    scripted_messages: Annotated[list[Annotated[str, Field(pattern=r"\S")]], Field(min_length=1)]
    context_extension: Literal["auto", "dynamic", "yarn", "linear", "none"]
    interactive: Annotated[bool, STEERING]
    peers: Annotated[list[str], STEERING]

    def session_settings(self) -> dict[str, object]:
        """The settings of a ChatSession."""
        return {"context_extension": self.extension()[0]} | {name: getattr(self, name) for name in _fields}

    def extension(self) -> tuple[str, str]:
        """The context extension for `model`, and a line that says why it was chosen."""
        run = Run(self.run_path) if is_run_model(self.model) else Run.around(resolve(self.model))
        return chosen_extension(self.context_extension, run)

    def result_parameters(self) -> Json:
        """The usual ones, with what `auto` stands for: a curve that says something else makes another conversation.

        Also the hashes of local models and checkpoints; the run's `final` and `base` count as upstream files.
        """
        files: dict[str, str] = {}
        for name in {self.model, self.compare_with} - {"final", "base", ""}:
            files |= {f"{name}/{file}": found for file, found in files_of(name, run=self.run_path).items()}
        found = {"context_extension": self.extension()[0]} | ({OUTSIDE: files} if files else {})
        return super().result_parameters() | found


def chosen_extension(asked: str, run: Run | None) -> tuple[str, str]:
    """The context extension for a model of that run (None: of no run), and a line that says why it was chosen."""
    if asked != AUTO:
        return asked, f"context extension: {asked}, as asked"
    if run is not None:
        scores = run.folder(maker("scores").name)
        with suppress(OSError, ValueError, KeyError, TypeError):
            best = read_json(scores / "results.json")["context_curve"]["best"]
            if best in EXTENSIONS:
                return best, f"context extension: {best}, the best of the context curve in {shown(scores)}"
    return DEFAULT, f"context extension: {DEFAULT}, since no context curve of notebook 04 says what suits this model"


def in_effect(chosen: str, why: str, model: PreTrainedModel) -> str:
    """The line of `chosen_extension`, or that this model cannot take any."""
    if chosen == "none" or can_extend(model):
        return why
    return f"context extension: none, since this model's position encoding cannot be extended ({chosen} was chosen)"
