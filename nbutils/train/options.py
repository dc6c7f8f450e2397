"""Other `SFTConfig` options: passed through one mapping, checked, and refused where our parts contradict them."""

from __future__ import annotations

from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.settings import nearest

_BATCHES = "smallchat's own batches replace it"
_FOLDER = "smallchat decides what is written where"
REFUSED = {
    "packing": _BATCHES,
    "padding_free": _BATCHES,
    "eval_packing": _BATCHES,
    "pad_to_multiple_of": _BATCHES,
    "per_device_train_batch_size": "batches are counted in tokens: use tokens_per_microbatch",
    "per_device_eval_batch_size": "batches are counted in tokens: use tokens_per_microbatch",
    "gradient_accumulation_steps": "accumulation is derived: use tokens_per_step and tokens_per_microbatch",
    "max_length": "use max_length of notebook 01; nothing is truncated here",
    "truncation_mode": "nothing is truncated here",
    "assistant_only_loss": "use supervise",
    "completion_only_loss": "use supervise",
    "loss_type": "the loss is chunked cross-entropy",
    "label_smoothing_factor": "the loss is chunked cross-entropy",
    "use_liger_kernel": "the loss is chunked cross-entropy",
    "fsdp": "smallchat trains with DDP",
    "fsdp_config": "smallchat trains with DDP",
    "deepspeed": "smallchat trains with DDP",
    "parallelism_config": "smallchat trains with DDP",
    "auto_find_batch_size": _BATCHES,
    "train_sampling_strategy": _BATCHES,
    "output_dir": _FOLDER,
    "save_strategy": _FOLDER,
    "save_steps": "use checkpoint_steps",
    "save_total_limit": "use checkpoints_kept",
    "eval_strategy": "use eval_steps",
    "eval_steps": "use the parameter eval_steps",
    "logging_steps": "use log_steps",
    "learning_rate": "use the parameter learning_rate",
    "num_train_epochs": "use epochs",
    "max_steps": "use the parameter max_steps",
    "seed": "use the parameter seed",
    "fp16": "use precision",
    "bf16": "use precision",
    "push_to_hub": "publishing is notebook 06",
    "load_best_model_at_end": "the last weights are the result; checkpoints stay beside them",
}


def checked_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options if every one is a field of SFTConfig that nothing here contradicts; UserError otherwise."""
    from dataclasses import fields

    from trl import SFTConfig

    known = [field.name for field in fields(SFTConfig)]
    for name in options:
        if name in REFUSED:
            raise UserError(f"trainer_options: '{name}' cannot be set here, since {REFUSED[name]}.")
        if name not in known:
            raise UserError(f"trainer_options: SFTConfig has no field '{name}'.{nearest(name, known)}")
    return dict(options)


def checked_trackers(names: list[str]) -> list[str]:
    """The trackers if each is known to transformers and its package installed; UserError otherwise."""
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UserError(f"report_to: there is no tracker '{name}'.{nearest(name, list(INTEGRATION_TO_CALLBACK))}")
        if name not in get_available_reporting_integrations():
            raise UserError(f"report_to: the package of '{name}' is not installed; `pip install {name}` adds it.")
    return list(names)
