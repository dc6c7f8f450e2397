"""The `SFTConfig` of a run: what smallchat sets, and the few other options that a person may set."""

from __future__ import annotations

from pathlib import Path

import torch
from trl import SFTConfig

from nbutils.core.hardware import device_report, usable_gpus
from nbutils.train.kernels import make_deterministic, repeat_shared_heads
from nbutils.train.settings import MUON, TrainSettings, checked_precision, checked_trackers

CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in SFTConfig.__dataclass_fields__
    else "gradient_checkpointing"
)
"""The option's name in this transformers: it was renamed after 5.0."""


class Arguments(SFTConfig):
    """An SFTConfig whose CPU is `cpu`: transformers 5.0 calls it cpu:0, where torch.load restores no optimizer."""

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device


def trainer_arguments(settings: TrainSettings, folder: Path) -> Arguments:
    """The SFTConfig of a run: our settings, the other options, and everything switched off that we replace."""
    gpus = usable_gpus(device_report().gpus)
    precision = checked_precision(settings, gpus)
    if gpus and settings.deterministic == "always":
        make_deterministic()
    repeat_shared_heads(precision, gpus)
    own = {
        "output_dir": str(folder / "checkpoints"),
        "seed": settings.seed,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,  # -1 follows the epochs
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.scheduler,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.gradient_limit,  # of a norm that is never cut, transformers 5.0 would not tell it
        "optim": "adamw_torch" if settings.optimizer == MUON else settings.optimizer,  # which Muon stands in for
        "fp16": precision == "fp16",
        "bf16": precision == "bf16",
        "use_cpu": not gpus,
        "report_to": checked_trackers(settings.report_to) or "none",
        CHECKPOINTING: False,
        "logging_nan_inf_filter": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "ignore_data_skip": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "ddp_find_unused_parameters": False,
    }
    return Arguments(**(own | settings.trainer_options))
