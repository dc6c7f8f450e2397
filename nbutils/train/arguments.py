"""The `SFTConfig` of a run: what smallchat sets, the checked other options, and all that is switched off."""

from __future__ import annotations

import math
from pathlib import Path

from trl import SFTConfig

from nbutils.core.errors import UserError
from nbutils.core.hardware import choose_precision, device_report, usable_gpus
from nbutils.train.determinism import make_deterministic
from nbutils.train.options import checked_options, checked_trackers
from nbutils.train.preflight import fp16_without_scaler, fused_with_fp16
from nbutils.train.settings import TrainSettings

CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in SFTConfig.__dataclass_fields__
    else "gradient_checkpointing"
)
"""The option's name in this transformers: it was renamed after 5.0."""


def trainer_arguments(settings: TrainSettings, folder: Path) -> SFTConfig:
    """The SFTConfig of a run: our settings, the checked other options, and everything switched off that we replace."""
    gpus = usable_gpus(device_report().gpus)
    precision = choose_precision(settings.precision, gpus)
    if problem := fp16_without_scaler(precision, gpus) or fused_with_fp16(precision, settings.optimizer):
        raise UserError(problem)
    make_deterministic(bool(gpus))
    steps = {"max_steps": settings.max_steps} if settings.max_steps else {"num_train_epochs": settings.epochs}
    own = {
        "output_dir": str(folder / "checkpoints"),
        "seed": settings.seed,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(settings.schedule, settings.schedule),
        "warmup_steps": settings.warmup_fraction,  # a fraction below 1 is a share of all steps
        "weight_decay": settings.weight_decay,
        # Of a norm that is never cut, transformers 5.0 would not tell the value.
        "max_grad_norm": settings.max_grad_norm or math.inf,
        "optim": settings.optimizer,
        "fp16": precision == "fp16",
        "bf16": precision == "bf16",
        "use_cpu": not gpus,
        "report_to": checked_trackers(settings.report_to) or "none",
        CHECKPOINTING: False,
        "logging_nan_inf_filter": False,
        "logging_strategy": "no",
        "eval_strategy": "no",
        "save_strategy": "no",
        "ignore_data_skip": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "ddp_find_unused_parameters": False,
    } | steps
    others = checked_options(settings.trainer_options)
    try:
        return SFTConfig(**(own | others))
    except (TypeError, ValueError) as error:
        if not others:
            raise
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"trainer_options: SFTConfig does not take {others} ({first}); change or remove one."
        ) from error
