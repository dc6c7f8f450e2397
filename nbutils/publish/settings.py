"""Parameters of notebook 06."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nbutils.core.settings import STEERING
from nbutils.core.settings import Settings as BaseSettings


class PublishSettings(BaseSettings):
    """Parameters of the publish stage; explained in the notebook's `parameters` cell."""

    model_name: str = Field(min_length=1, max_length=96)
    license: str = Field(min_length=1)
    languages: list[str] = Field(min_length=1)
    tags: list[str]
    parity_conversations: int = Field(ge=1)
    parity_replies: int = Field(ge=1)
    parity_tokens: int = Field(ge=1)
    push: bool
    repo_id: str = Field(pattern=r"^([\w.-]+/[\w.-]+)?$")
    private: Annotated[bool, STEERING]


Settings = PublishSettings
