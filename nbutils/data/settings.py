"""Parameters of notebook 01: which conversations are read and which of them are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nbutils.core.errors import UserError
from nbutils.core.files import Json, local_hashes
from nbutils.core.run.models import TOKENIZER_FILES, files_of
from nbutils.core.settings import OUTSIDE, STEERING, Seed, Settings


class DatasetSpec(BaseModel):
    """One dataset to read: hub id, folder, file, or `chitchat`; `fraction` is the share of its rows taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1)
    name: str = ""
    split: str = "train"
    fraction: float = Field(default=1.0, gt=0, le=1)
    revision: str = ""

    @model_validator(mode="before")
    @classmethod
    def _of_a_name(cls, value: Any) -> Any:
        """A name or path alone stands for a mapping with nothing but `path`."""
        return {"path": value} if isinstance(value, str) else value

    @property
    def label(self) -> str:
        """What rows of this dataset are called in the ledger, such as `path/name[split]@revision`."""
        name = f"/{self.name}" if self.name else ""
        split = f"[{self.split}]" if self.split != "train" else ""
        revision = f"@{self.revision[:12]}" if self.revision else ""
        return f"{self.path}{name}{split}{revision}"

    @property
    def draw(self) -> str:
        """What decides, with a row's number, whether `fraction` takes it: moved or pinned, it gives the same rows."""
        return self.model_copy(update={"path": Path(self.path).name, "revision": ""}).label

    @property
    def whole_split(self) -> str:
        """The split without a slice: `train` of `train[:1000]`."""
        return re.sub(r"\[[^\]]*\]$", "", self.split)

    def refuse(self, kind: str, *fields: str) -> None:
        """UserError where one of the fields is set, rather than passing over what this kind of dataset does not have.

        A local one never has a revision.
        """
        for field in ("revision", *fields):
            value = "" if field == "split" and self.whole_split == "train" else getattr(self, field)
            if value:
                raise UserError(
                    f"The dataset {self.path} is {kind}, which takes no {field}, but its {field} is '{value}'; take "
                    f"{field} out of `datasets`{', or slice it as train[:1000]' if field == 'split' else ''}."
                )

    def parts(self, sizes: Mapping[str, int]) -> list[tuple[str, range]]:
        """The rows that the split takes, such as `train[:10%]`, by name of a whole split; `sizes` are those of all.

        UserError for a split that is not there or a slice that goes beyond it.
        """
        if self.split in sizes:
            return [(self.split, range(sizes[self.split]))]
        from datasets import ReadInstruction

        try:
            found = ReadInstruction.from_spec(self.split).to_absolute(dict(sizes))
        except (ValueError, AssertionError) as error:
            raise UserError(
                f"The dataset {self.path} has no split '{self.split}'; it has {', '.join(sizes)}. Name one, or a slice "
                f"of one, in `datasets` ({error})."
            ) from None
        return [(one.splitname, range(sizes[one.splitname])[one.from_ : one.to]) for one in found]


class DataSettings(Settings):
    """Settings of the data stage."""

    base_model: str = Field(min_length=1)
    base_revision: str
    datasets: list[DatasetSpec] = Field(min_length=1)
    streaming: bool
    max_length: int = Field(ge=16)
    eval_fraction: float = Field(gt=0, lt=1)
    split_seed: Seed
    contamination_tasks: list[str]
    contamination_words: int = Field(ge=3)
    task_path: str
    near_duplicates: Literal["off", "report", "drop"]
    seed: Annotated[Seed, STEERING]
    data_processes: Annotated[int, Field(ge=0), STEERING]

    def result_parameters(self) -> Json:
        """Also the hashes of the local files that are read: another content under the same name is another result."""
        tasks = self.task_path if self.contamination_tasks else ""  # nothing else here reads the folder of tasks
        tokenizer = files_of(self.base_model, TOKENIZER_FILES)
        files = local_hashes([*(spec.path for spec in self.datasets), tasks])
        files |= {f"{self.base_model}/{name}": found for name, found in tokenizer.items()}
        return super().result_parameters() | {OUTSIDE: files}

    @field_validator("datasets")
    @classmethod
    def _named_once(cls, value: list[DatasetSpec]) -> list[DatasetSpec]:
        labels = [spec.label for spec in value]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"the dataset {label} is listed twice; list it once, its rows would be duplicates")
        return value
