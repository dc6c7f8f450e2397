"""What notebook 02 can be asked to do."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
)
from typing_extensions import TypedDict

from nbutils.core.errors import UserError
from nbutils.core.files import Json
from nbutils.core.hardware import Gpu, choose_precision, usable_gpus
from nbutils.core.run.models import TINY, ModelRef, files_of
from nbutils.core.settings import OUTSIDE, STEERING, Seed
from nbutils.core.settings import Settings as BaseSettings

OF_LENGTH = ("cooldown_fraction", "epochs", "finish_in_minutes", "max_steps")
"""What a `wsd` run can still change before its cool-down begins."""
MUON = "muon"
OPTIMIZERS = {"adamw_torch": 2, "adamw_torch_fused": 2, "sgd": 0, MUON: 2}
"""The optimizers, Muon beside transformers' own, with how many numbers each keeps of a weight (see `numbers_kept`)."""

Share = Annotated[float, Field(ge=0, lt=1)]


class TrainerOptions(TypedDict, total=False):
    """The options of trl's `SFTConfig` that have no parameter of their own, and that our parts work with."""

    adam_beta1: Share
    adam_beta2: Share
    adam_epsilon: PositiveFloat
    neftune_noise_alpha: NonNegativeFloat
    activation_checkpointing: bool
    gradient_checkpointing: bool  # the same in transformers 5.0
    ddp_bucket_cap_mb: PositiveInt
    ddp_timeout: PositiveInt
    run_name: str
    project: str


def _known(options: Any) -> Any:
    for name in options if isinstance(options, dict) else ():
        if name not in TrainerOptions.__annotations__:
            raise ValueError(f"'{name}' cannot be set here, only {', '.join(TrainerOptions.__annotations__)}")
    return options


class TrainSettings(BaseSettings):
    """Parameters of the training stage; their help lines stand in the notebook's parameters cell."""

    base_model: Annotated[str, Field(min_length=1)]
    base_revision: str
    max_length: Annotated[int, Field(ge=16)]
    seed: Seed
    learning_rate: Annotated[float, Field(gt=0, lt=10)]
    schedule: Literal["cosine", "linear", "constant", "wsd"]
    cooldown_fraction: Annotated[float, Field(gt=0, lt=1)]
    warmup_fraction: Share
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(ge=0)]
    optimizer: Literal[*OPTIMIZERS]  # type: ignore[valid-type]
    epochs: Annotated[float, Field(gt=0)]
    max_steps: Annotated[int, Field(ge=0)]
    finish_in_minutes: Annotated[float, Field(ge=0)]
    tokens_per_step: Annotated[int, Field(ge=1)]
    tokens_per_microbatch: Annotated[int, Field(ge=0)]
    supervise: Literal["assistant", "all"]
    supervise_end: bool
    precision: Literal["auto", "fp16", "bf16", "fp32"]
    deterministic: Literal["always", "never"]
    compile: Literal["auto", "always", "never"]
    trainer_options: Annotated[TrainerOptions, BeforeValidator(_known)]
    eval_steps: Annotated[int, Field(ge=0)]
    keep: Literal["best", "last"]
    patience: Annotated[int, Field(ge=0)]
    sample_prompts: list[str]
    log_steps: Annotated[int, Field(ge=1), STEERING]
    checkpoint_steps: Annotated[int, Field(ge=0), STEERING]
    checkpoints_kept: Annotated[int, Field(ge=1), STEERING]
    processes: Annotated[int, Field(ge=0, le=1024), STEERING]
    budget_minutes: Annotated[float, Field(ge=0), STEERING]
    pause_after_steps: Annotated[int, Field(ge=0), STEERING]
    report_to: Annotated[list[str], STEERING]
    plain_loop_steps: Annotated[int, Field(ge=0), STEERING]

    @field_validator("optimizer", mode="before")
    @classmethod
    def _fits_the_base(cls, name: Any, info: ValidationInfo) -> Any:
        if name != "auto":
            return name
        return MUON if info.data.get("base_model") == TINY else "adamw_torch"

    @field_validator("patience")
    @classmethod
    def _counts_evaluations(cls, patience: int, info: ValidationInfo) -> int:
        if patience and info.data.get("eval_steps") == 0:
            raise ValueError("it counts evaluations, and eval_steps is 0; set that too")
        return patience

    @field_validator("finish_in_minutes")
    @classmethod
    def _fixes_the_steps(cls, minutes: float, info: ValidationInfo) -> float:
        if minutes and info.data.get("max_steps"):
            raise ValueError(
                f"it fixes the number of steps, and max_steps is {info.data['max_steps']}; give one of them"
            )
        return minutes

    @property
    def base_ref(self) -> ModelRef:
        """The base model that is asked for."""
        return ModelRef.parse(self.base_model, revision=self.base_revision)

    @property
    def gradient_limit(self) -> float:
        """The norm to which gradients are scaled down, infinite where they never are."""
        return self.max_grad_norm or math.inf

    @property
    def scheduler(self) -> str:
        """transformers' name of the schedule."""
        return {"constant": "constant_with_warmup", "wsd": "warmup_stable_decay"}.get(self.schedule, self.schedule)

    def warmup_steps(self, steps: int, epoch: int) -> int:
        """Optimizer steps of the warm-up, of so many in all and in an epoch."""
        return math.ceil((epoch if self.schedule == "wsd" else steps) * self.warmup_fraction)

    def cooldown_from(self, steps: int) -> int | None:
        """The step after which the learning rate of a `wsd` run of so many steps falls; None for other schedules."""
        return steps - math.ceil(steps * self.cooldown_fraction) if self.schedule == "wsd" else None

    def checked_warmup(self, steps: int, epoch: int) -> int:
        """The steps of the warm-up; UserError where it would reach into the cool-down."""
        warmup, cooling = self.warmup_steps(steps, epoch), self.cooldown_from(steps)
        if cooling is not None and warmup > cooling:
            raise UserError(
                f"The warm-up takes {warmup:,} steps, but the cool-down of {steps:,} steps begins at step {cooling:,}; "
                "lower warmup_fraction or cooldown_fraction, or train for longer."
            )
        return warmup

    def schedule_options(self, steps: int) -> Json:
        """What transformers' schedule takes beside the steps of the run and of the warm-up."""
        start = self.cooldown_from(steps)
        return {} if start is None else {"num_decay_steps": steps - start, "decay_type": "1-sqrt"}

    @property
    def adamw(self) -> Json:
        """The options of `torch.optim.AdamW`."""
        others = self.trainer_options
        betas = (others.get("adam_beta1", 0.9), others.get("adam_beta2", 0.999))
        return {"lr": self.learning_rate, "betas": betas, "weight_decay": self.weight_decay}

    @property
    def plain_steps(self) -> int:
        """Steps of the plain loop; none where the length of the warm-up is not known before training."""
        return 0 if self.finish_in_minutes else self.plain_loop_steps

    def own_parameters(self) -> Json:
        """The result parameters themselves."""
        unused = {"cooldown_fraction"} if self.schedule != "wsd" else set()
        return {name: value for name, value in super().result_parameters().items() if name not in unused}

    def result_parameters(self) -> Json:
        """Also the hashes of a local base model's files: other weights under the same name are another base."""
        files = files_of(self.base_model)
        return self.own_parameters() | ({OUTSIDE: files} if files else {})


def checked_trackers(names: list[str]) -> list[str]:
    """The trackers if transformers knows each and its package is installed; UserError otherwise."""
    from transformers.integrations import get_available_reporting_integrations

    installed = get_available_reporting_integrations()
    if missing := set(names) - set(installed):
        raise UserError(
            f"report_to: no tracker {', '.join(sorted(missing))} is installed ({', '.join(installed) or 'none'} is)."
        )
    return names


def checked_precision(settings: TrainSettings, gpus: tuple[Gpu, ...]) -> str:
    """The precision that training runs in on a machine with these GPUs. UserError where fp16 cannot work.

    On the CPU accelerate makes no loss scaler, and says nothing about it.
    """
    precision = choose_precision(settings.precision, gpus)
    if precision == "fp16" and not usable_gpus(gpus):
        raise UserError(
            "precision is fp16, but training runs on the CPU, where gradients would underflow unscaled; set it to auto."
        )
    return precision
