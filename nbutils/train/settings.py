"""What notebook 02 can be asked to do."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from nbutils.core.inputs import FILES, model_hashes
from nbutils.core.settings import STEERING, Seed
from nbutils.core.settings import Settings as BaseSettings


class TrainSettings(BaseSettings):
    """Parameters of the training stage; their help lines stand in the notebook's parameters cell."""

    base_model: Annotated[str, Field(min_length=1)]
    base_revision: str
    max_length: Annotated[int, Field(ge=16)]
    seed: Seed
    learning_rate: Annotated[float, Field(gt=0, lt=10)]
    schedule: Literal["cosine", "linear", "constant"]
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(ge=0)]
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "sgd"]
    epochs: Annotated[float, Field(gt=0)]
    max_steps: Annotated[int, Field(ge=0)]
    tokens_per_step: Annotated[int, Field(ge=1)]
    tokens_per_microbatch: Annotated[int, Field(ge=1)]
    supervise: Literal["assistant", "all"]
    supervise_end: bool
    precision: Literal["auto", "fp16", "bf16", "fp32"]
    trainer_options: dict[str, Any]
    eval_steps: Annotated[int, Field(ge=0)]
    sample_prompts: list[str]
    log_steps: Annotated[int, Field(ge=1), STEERING]
    checkpoint_steps: Annotated[int, Field(ge=0), STEERING]
    checkpoints_kept: Annotated[int, Field(ge=1), STEERING]
    processes: Annotated[int, Field(ge=0, le=1024), STEERING]
    budget_minutes: Annotated[float, Field(ge=0), STEERING]
    pause_after_steps: Annotated[int, Field(ge=0), STEERING]
    report_to: Annotated[list[str], STEERING]
    plain_loop_steps: Annotated[int, Field(ge=0), STEERING]

    def result_parameters(self) -> dict[str, Any]:
        """Also the hashes of a local base model's files: other weights under the same name are another base."""
        files = model_hashes(self.base_model)
        return super().result_parameters() | ({FILES: files} if files else {})


Settings = TrainSettings
