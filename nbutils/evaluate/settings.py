"""Parameters of notebook 04: which models are measured, on what, and how certain the numbers are to be."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from nbutils.core.files import Json, local_hashes
from nbutils.core.run.models import files_of
from nbutils.core.settings import OUTSIDE, STEERING, Folder, Seed, Settings


class EvaluateSettings(Settings):
    """Settings of the evaluation stage; their help lines stand in the notebook's parameters cell."""

    tasks: Annotated[list[str], Field(min_length=1)]
    task_path: str
    limit: NonNegativeInt
    peers: list[str]
    num_fewshot: NonNegativeInt
    apply_chat_template: bool
    max_length: Annotated[int, Field(ge=16)]
    eval_precision: Literal["auto", "fp32", "fp16", "bf16"]
    selection_items: Annotated[int, Field(ge=4)]
    resamples: Annotated[int, Field(ge=100)]
    behaviour_prompts: NonNegativeInt
    reply_tokens: PositiveInt
    context_curve: NonNegativeInt
    seed: Seed
    split_seed: Seed
    tokens_per_batch: Annotated[NonNegativeInt, STEERING]
    processes: Annotated[NonNegativeInt, STEERING]
    cache_dir: Folder

    def result_parameters(self) -> Json:
        """Also the hashes of the user's own tasks and of local peers: what is measured, and what is compared."""
        peers = {f"{peer}/{name}": found for peer in self.peers for name, found in files_of(peer).items()}
        return super().result_parameters() | {OUTSIDE: local_hashes([self.task_path]) | peers}
