"""What notebook 05 can be asked to do."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from nbutils.chat.extension import chosen_extension, run_of
from nbutils.chat.models import located
from nbutils.core.errors import UserError
from nbutils.core.files import resolve
from nbutils.core.inputs import FILES, model_hashes
from nbutils.core.settings import STEERING, Seed
from nbutils.core.settings import Settings as BaseSettings


class ChatSettings(BaseSettings):
    """Parameters of the chat stage; their help lines stand in the notebook's parameters cell."""

    model: Annotated[str, Field(min_length=1)]
    compare_with: str
    scripted_messages: list[str]
    context_extension: Literal["auto", "dynamic", "yarn", "linear", "none"]
    greedy: bool
    temperature: Annotated[float, Field(gt=0, le=5)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    repetition_penalty: Annotated[float, Field(ge=0.5, le=5)]
    max_new_tokens: Annotated[int, Field(ge=1)]
    seed: Seed
    interactive: Annotated[bool, STEERING]
    peers: Annotated[list[str], STEERING]

    @field_validator("scripted_messages")
    @classmethod
    def _some_text(cls, messages: list[str]) -> list[str]:
        if not messages:
            raise ValueError("the script needs one message at least")
        if any(not message.strip() for message in messages):
            raise ValueError("every scripted message needs some text")
        return messages

    def session_settings(self) -> dict[str, object]:
        """The settings of a ChatSession."""
        names = ("greedy", "temperature", "top_p", "repetition_penalty", "max_new_tokens", "seed")
        return {"context_extension": self.extension()[0]} | {name: getattr(self, name) for name in names}

    def extension(self) -> tuple[str, str]:
        """The context extension for `model`, and a line that says why it was chosen."""
        of_this_run = re.fullmatch(r"final|base|step-\d+", self.model)
        return chosen_extension(self.context_extension, self.run_path if of_this_run else run_of(resolve(self.model)))

    def result_parameters(self) -> dict[str, Any]:
        """As ever, with what `auto` stands for: a curve that says something else makes another conversation.

        Also the hashes of local models and checkpoints; the run's `final` and `base` count as upstream files.
        """
        files: dict[str, str] = {}
        for name in {self.model, self.compare_with} - {"final", "base", ""}:
            with suppress(UserError):  # what is not there has no content yet; loading it says so
                files |= {f"{name}/{file}": found for file, found in model_hashes(located(name, self.run_path)).items()}
        found = {"context_extension": self.extension()[0]} | ({FILES: files} if files else {})
        return super().result_parameters() | found


Settings = ChatSettings
