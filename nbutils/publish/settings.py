"""Parameters of notebook 06."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from nbutils.core.settings import STEERING, nearest
from nbutils.core.settings import Settings as BaseSettings
from nbutils.publish.licences import LICENCES

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
"""A name on the Hub: `owner/name`, or the `name` alone of the few old models and datasets that have no owner."""
LANGUAGE = re.compile(r"[a-z]{2,3}|multilingual|code")


class PublishSettings(BaseSettings):
    """Parameters of the publish stage; explained in the notebook's `parameters` cell."""

    model_name: str = Field(min_length=1, max_length=96)
    license: str
    languages: list[str] = Field(min_length=1)
    tags: list[str]
    base_model_id: str
    dataset_ids: list[str]
    parity_conversations: int = Field(ge=1)
    parity_replies: int = Field(ge=1)
    parity_tokens: int = Field(ge=1)
    push: bool
    repo_id: str = Field(pattern=r"^([\w.-]+/[\w.-]+)?$")
    private: Annotated[bool, STEERING]

    @field_validator("license")
    @classmethod
    def _known_licence(cls, value: str) -> str:
        if value not in LICENCES:
            close = nearest(value.strip().lower().replace(" ", "-"), sorted(LICENCES))
            raise ValueError(f"the Hub knows no such licence ('other' is for any that it does not list).{close}")
        return value

    @field_validator("languages")
    @classmethod
    def _language_codes(cls, value: list[str]) -> list[str]:
        wrong = [language for language in value if not LANGUAGE.fullmatch(language)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no language code of two or three small letters, such as 'en'")
        return value

    @field_validator("base_model_id")
    @classmethod
    def _base_on_the_hub(cls, value: str) -> str:
        if value and not HUB_ID.fullmatch(value):
            raise ValueError("the Hub's name of the base is expected, such as 'owner/name', or nothing")
        return value

    @field_validator("dataset_ids")
    @classmethod
    def _datasets_on_the_hub(cls, value: list[str]) -> list[str]:
        wrong = [name for name in value if not HUB_ID.fullmatch(name)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no name on the Hub, such as 'owner/name'")
        return value


Settings = PublishSettings
