"""What notebook 05 can be asked to do."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from nbutils.chat.models import located
from nbutils.core.errors import UserError
from nbutils.core.inputs import model_hashes
from nbutils.core.settings import STEERING, Seed
from nbutils.core.settings import Settings as BaseSettings


class ChatSettings(BaseSettings):
    """Parameters of the chat stage; their help lines stand in the notebook's parameters cell."""

    model: Annotated[str, Field(min_length=1)]
    compare_with: str
    scripted_messages: list[str]
    context_extension: Literal["dynamic", "yarn", "linear", "none"]
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
    def _no_empty_message(cls, messages: list[str]) -> list[str]:
        if any(not message.strip() for message in messages):
            raise ValueError("every scripted message needs some text")
        return messages

    def result_parameters(self) -> dict[str, Any]:
        """Also the hashes of local models and checkpoints; the run's `final` and `base` count as upstream files."""
        files = {}
        for name in {self.model, self.compare_with} - {"final", "base", ""}:
            with suppress(UserError):  # what is not there has no content yet; loading it says so
                files |= {f"{name}/{file}": found for file, found in model_hashes(located(name, self.run_path)).items()}
        return super().result_parameters() | ({"files": files} if files else {})

    def session_settings(self) -> dict[str, object]:
        """The settings of a ChatSession."""
        names = ("context_extension", "greedy", "temperature", "top_p", "repetition_penalty", "max_new_tokens", "seed")
        return {name: getattr(self, name) for name in names}


Settings = ChatSettings
