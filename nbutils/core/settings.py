"""Validated settings: what a notebook's parameters cell holds, with types coerced and ranges checked.

Settings models carry no defaults; the notebook's parameters cell is the only home of a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from nbutils.core.errors import UserError
from nbutils.core.files import Json, resolve

STEERING = "steering"
"""Marks a parameter that steers a run (budget, logging, paths, display) without changing what comes out of it."""

OUTSIDE = "files"
"""The entry of a stage's result parameters that holds the hashes of files outside the run folder."""


def _no_file(path: str) -> str:
    if resolve(path).is_file():
        raise ValueError("a file is there; name a folder")
    return path


Folder = Annotated[str, Field(min_length=1), AfterValidator(_no_file), STEERING]
"""Where a stage writes; made where it is not there."""

Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Settings(BaseModel):
    """Base of every stage's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    run_dir: Folder

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and field.annotation in (int, float):
            raise ValueError("a number is expected, not true or false")
        return value

    @classmethod
    def from_notebook(cls, names: Mapping[str, Any]) -> Self:
        """The settings among a notebook's names (`globals()`); UserError says in a sentence what is wrong."""
        return cls.checked({name: names[name] for name in cls.model_fields if name in names})

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """Settings from a mapping; UserError names each wrong parameter, what was found and what is expected."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise in_words(error, cls) from None

    @property
    def run_path(self) -> Path:
        """The run folder, absolute."""
        return resolve(self.run_dir)

    def result_parameters(self) -> Json:
        """The parameters that change what comes out, as JSON values: part of a cache key, unlike steering ones."""
        fields = type(self).model_fields
        steering = {name for name, field in fields.items() if STEERING in field.metadata}
        return self.model_dump(mode="json", exclude=steering)


def nearest(name: str, known: list[str]) -> str:
    """' Did you mean …?' for a misspelt name, or nothing."""
    match = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def in_words(error: ValidationError, model: type[BaseModel]) -> UserError:
    """What is wrong with values for a model, in sentences, and what the fields are for that say so."""
    words = []
    for detail in error.errors():
        name, message = ".".join(map(str, detail["loc"])) or model.__name__, detail["msg"].removeprefix("Value error, ")
        field = model.model_fields.get(name)
        use = f" ({field.description})" if field and field.description else ""
        words.append(
            {
                "missing": f"The parameter '{name}' is missing",
                "extra_forbidden": f"'{name}' is no parameter here.{nearest(name, list(model.model_fields))}",
            }.get(
                detail["type"], f"The parameter '{name}' is {detail['input']!r}: {message[0].lower()}{message[1:]}{use}"
            )
        )
    wrong = UserError("; ".join(words) + ".")
    wrong.fields = tuple(str(detail["loc"][0]) for detail in error.errors() if detail["loc"])
    return wrong
