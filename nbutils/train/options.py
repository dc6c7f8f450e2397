"""Other `SFTConfig` options: passed through one mapping, checked, and refused where our parts contradict them."""

from __future__ import annotations

from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from nbutils.core.errors import UserError
from nbutils.core.settings import nearest

_BATCHES = "smallchat's own batches replace it"
_FOLDER = "smallchat decides what is written where"
_LOADER = "smallchat's own loader takes the place of torch's"
_TOKENIZER = "notebook 01 made the tokenizer with its template and its control tokens"
_ROWS = "notebook 01 made the rows"
_LOGGING = "smallchat writes its own rows of metrics: use log_steps"
_STEP = "smallchat's own training step would not look at it"
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
    "accelerator_config": _BATCHES,
    "ignore_data_skip": _BATCHES,
    "packing_strategy": _BATCHES,
    "data_seed": "use the parameter seed",
    "dataloader_drop_last": _LOADER,
    "dataloader_num_workers": _LOADER,
    "dataloader_pin_memory": _LOADER,
    "dataloader_persistent_workers": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "dataloader_multiprocessing_context": _LOADER,
    "dataloader_in_order": _LOADER,
    "remove_unused_columns": _ROWS,
    "dataset_kwargs": _ROWS,
    "dataset_text_field": _ROWS,
    "dataset_num_proc": _ROWS,
    "shuffle_dataset": _BATCHES,
    "eos_token": _TOKENIZER,
    "pad_token": _TOKENIZER,
    "chat_template_path": _TOKENIZER,
    "model_init_kwargs": "use base_model",
    "optim": "use optimizer",
    "lr_scheduler_type": "use schedule",
    "warmup_steps": "use warmup_fraction",
    "weight_decay": "use the parameter weight_decay",
    "max_grad_norm": "use the parameter max_grad_norm",
    "use_cpu": "smallchat chooses the device; CUDA_VISIBLE_DEVICES='' in the environment hides the GPUs",
    "full_determinism": "training is deterministic anyway",
    "ddp_find_unused_parameters": "every parameter takes part in the loss",
    "activation_offloading": _STEP,
    "torch_empty_cache_steps": _STEP,
    "output_dir": _FOLDER,
    "save_strategy": _FOLDER,
    "save_only_model": _FOLDER,
    "save_on_each_node": _FOLDER,
    "resume_from_checkpoint": "smallchat resumes from the newest whole checkpoint by itself",
    "enable_jit_checkpoint": "smallchat pauses by itself on a signal",
    "save_steps": "use checkpoint_steps",
    "save_total_limit": "use checkpoints_kept",
    "eval_strategy": "use eval_steps",
    "eval_steps": "use the parameter eval_steps",
    "eval_on_start": "the untrained model is always evaluated",
    "eval_delay": "use the parameter eval_steps",
    "logging_steps": "use log_steps",
    "logging_strategy": _LOGGING,
    "logging_first_step": _LOGGING,
    "logging_nan_inf_filter": _LOGGING,
    "disable_tqdm": _LOGGING,
    "report_to": "use the parameter report_to",
    "learning_rate": "use the parameter learning_rate",
    "num_train_epochs": "use epochs",
    "max_steps": "use the parameter max_steps",
    "seed": "use the parameter seed",
    "fp16": "use precision",
    "bf16": "use precision",
    "push_to_hub": "publishing is notebook 06",
    "load_best_model_at_end": "the last weights are the result; checkpoints stay beside them",
}


ADJUSTABLE = ("activation_checkpointing", "gradient_checkpointing")
"""Options that smallchat sets and a person may set otherwise: memory for time, under the new name and the old."""


def checked_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options, as numbers where YAML left text, if each is a field of SFTConfig that nothing here contradicts.

    UserError otherwise, and for a value of another type than the field's.
    """
    from dataclasses import fields
    from typing import get_type_hints

    from trl import SFTConfig

    known = [field.name for field in fields(SFTConfig)]
    hints = get_type_hints(SFTConfig)
    found = {}
    for name in options:
        if name in REFUSED:
            raise UserError(f"trainer_options: '{name}' cannot be set here: {REFUSED[name]}.")
        if name not in known:
            raise UserError(f"trainer_options: SFTConfig has no field '{name}'.{nearest(name, known)}")
        found[name] = _typed(name, options[name], hints[name])
    return found


def _typed(name: str, value: Any, hint: Any) -> Any:
    """The value in the field's type; transformers itself looks at a type where the value is used, or never."""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
    except PydanticSchemaGenerationError:
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        text = error.errors()[0]["msg"].removeprefix("Input ")
        raise UserError(f"trainer_options: '{name}' is {value!r}, but it {text}.") from None


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
