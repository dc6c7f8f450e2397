"""The `SFTConfig` of a run: what smallchat sets, the few other options that a person may set, and determinism."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from trl import SFTConfig

from nbutils.core.hardware import device_report, usable_gpus
from nbutils.train.dataset import Microbatch
from nbutils.train.settings import MUON, TrainSettings, checked_precision, checked_trackers

if TYPE_CHECKING:
    from nbutils.train.trainer import SmallchatTrainer

CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in SFTConfig.__dataclass_fields__
    else "gradient_checkpointing"
)
"""The option's name in this transformers: it was renamed after 5.0."""

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Environment variable without which cuBLAS may sum in another order from run to run."""

PROBE = 16
"""Tokens of the micro-batch that asks a model for an operation without a deterministic form."""


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
    if gpus:
        make_deterministic()
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


def make_deterministic() -> None:
    """Chooses deterministic algorithms for this process's GPU; the CPU's are so already.

    Strictly, without `warn_only`: under that the backward pass of memory-efficient attention, which a T4 takes, keeps
    to its nondeterministic algorithm (aten/src/ATen/native/transformers/cuda/attention_backward.cu), and flash
    attention's likewise.
    """
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time


def relax_where_needed(trainer: SmallchatTrainer) -> str | None:
    """Computes one short step; where an operation has no deterministic form, torch may warn from now on.

    Returns a sentence about it for people, or None where all is deterministic. Gradients are left empty.
    """
    ids = torch.arange(PROBE, device=trainer.args.device)[None]
    try:
        with trainer.compute_loss_context_manager():
            trainer.compute_loss(trainer.model, Microbatch(ids, ids[0, :-1], ids[0, 1:]))["loss_sum"].backward()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        torch.use_deterministic_algorithms(True, warn_only=True)
        operation = str(error).split(" ", 1)[0]
        return (
            f"{operation} has no deterministic form on this device, so a resumed run will not be bit-identical to one "
            "never disturbed."
        )
    finally:
        trainer.model.zero_grad(set_to_none=True)
    return None
