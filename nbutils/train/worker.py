"""The torchrun program: `torchrun … -m nbutils.train.worker SETTINGS.json`.

SETTINGS.json holds `{"settings": {parameters of the training stage}}`; the run folder named there holds the data, and
everything that training makes goes into `<run>/train/`. Nothing in here knows how many machines there are.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoTokenizer, PreTrainedModel, PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging
from trl import SFTConfig

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, replaced, sha256_of_file, sha256_of_json, shown, write_json
from nbutils.core.hardware import choose_precision, device_report, usable_gpus
from nbutils.core.models import load_model
from nbutils.train.base import ensure_base
from nbutils.train.batches import BatchPlan
from nbutils.train.checkpoints import clear_partial, disk_is_full, newest_valid
from nbutils.train.control import PauseRequests, StepControl
from nbutils.train.dataset import TokenRows
from nbutils.train.loader import StepLoader
from nbutils.train.meters import Meters, flops_of
from nbutils.train.options import checked_options, checked_trackers
from nbutils.train.preflight import fp16_without_scaler, fused_with_fp16
from nbutils.train.records import Records
from nbutils.train.settings import TrainSettings
from nbutils.train.trainer import Job, SmallchatTrainer
from nbutils.train.watchdog import HANG_SECONDS, RANK_PREFIX, STARTED, end_with_parent, within

EXIT_USER_ERROR = 3
"""Environment variable: when the stage started (seconds since the epoch); the time budget counts from there."""


_CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in SFTConfig.__dataclass_fields__
    else "gradient_checkpointing"
)
"""The option's name in this transformers: it was renamed after 5.0."""


def main(arguments: list[str]) -> int:
    """Runs one rank; the exit status is 0 also for a pause."""
    if len(arguments) != 1:
        print("usage: torchrun … -m nbutils.train.worker SETTINGS.json", file=sys.stderr)
        return 2
    end_with_parent()
    settings = TrainSettings.checked(read_json(Path(arguments[0]))["settings"])
    records = Records(settings.run_path / "train", active=int(os.environ.get("RANK", "0")) == 0)
    requests = PauseRequests(settings.run_path)
    requests.listen()
    try:
        train(settings, records, requests)
    except UserError as error:
        print(error, file=sys.stderr)
        Records(records.folder, active=True).progress("error", message=str(error))
        return EXIT_USER_ERROR
    except Exception as error:
        if not disk_is_full(records.folder, error):
            for line in traceback.format_exc().splitlines():  # with its rank: the processes share one log
                print(f"{RANK_PREFIX.format(os.environ.get('RANK', '0'))}{line}", file=sys.stderr)
            return 1
        message = (
            f"The disk of {shown(settings.run_path)} is full, so training stopped; free some and run again: it goes on "
            "from the last checkpoint."
        )
        print(message, file=sys.stderr)
        with suppress(OSError):
            Records(records.folder, active=True).progress("error", message=message)
        return EXIT_USER_ERROR
    return 0


def train(settings: TrainSettings, records: Records, requests: PauseRequests) -> None:
    """Trains from the base or the newest checkpoint to the end or to a pause."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    run, folder = settings.run_path, settings.run_path / "train"
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "trackers"))
    args = trainer_arguments(settings, folder)
    rank, world = args.process_index, args.world_size
    _first_exchange(args)
    if rank == 0:
        ensure_base(settings, folder / "base", run / "data")
        clear_partial(folder / "checkpoints")
    _barrier(world)
    set_seed(settings.seed)
    identity = identity_of(settings, run / "data")
    checkpoint, remarks = newest_valid(folder / "checkpoints", identity)
    step = int(read_json(checkpoint / "manifest.json")["step"]) if checkpoint else 0
    _barrier(world)
    session = records.rewind(step) + 1
    for remark in remarks:
        records.progress("warning", message=f"The checkpoint {remark}.")

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = load_model(str(folder / "base"))
    end = None if settings.supervise_end else tokenizer.eos_token_id
    rows = TokenRows.load(run / "data" / "train", settings.supervise, end)
    plan = BatchPlan(rows.lengths(), settings.tokens_per_step, settings.tokens_per_microbatch, settings.seed)
    meters = Meters(_flops(model), requests)
    loader = StepLoader(rows, plan, rank, world, step, meters.add)
    eval_rows = TokenRows.load(run / "data" / "eval", "assistant")
    if checkpoint:
        meters.load(checkpoint)
        if read_json(checkpoint / "manifest.json")["world_size"] != world:
            records.progress("warning", message="Resumed with another number of processes: not bit-identical.")
    if settings.budget_minutes > 0:
        meters.deadline = float(os.environ.get(STARTED, meters.created)) + 60 * settings.budget_minutes
    job = Job(settings, folder, identity, loader, eval_rows, records, meters, session)
    control = StepControl()
    trainer = SmallchatTrainer(model, tokenizer, args, job)
    control.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(control)
    _announce(job, args, plan.total_steps(settings.epochs, settings.max_steps), model)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _end(trainer, job, tokenizer)


def trainer_arguments(settings: TrainSettings, folder: Path) -> SFTConfig:
    """The SFTConfig of a run: our settings, the checked other options, and everything switched off that we replace."""
    gpus = usable_gpus(device_report().gpus)
    precision = choose_precision(settings.precision, gpus)
    if problem := fp16_without_scaler(precision, gpus) or fused_with_fp16(precision, settings.optimizer):
        raise UserError(problem)
    steps = {"max_steps": settings.max_steps} if settings.max_steps else {"num_train_epochs": settings.epochs}
    return SFTConfig(
        **{
            "output_dir": str(folder / "checkpoints"),
            "seed": settings.seed,
            "learning_rate": settings.learning_rate,
            "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(settings.schedule, settings.schedule),
            "warmup_steps": settings.warmup_fraction,  # a fraction below 1 is a share of all steps
            "weight_decay": settings.weight_decay,
            "max_grad_norm": settings.max_grad_norm,
            "optim": settings.optimizer,
            "fp16": precision == "fp16",
            "bf16": precision == "bf16",
            "use_cpu": not gpus,
            "report_to": checked_trackers(settings.report_to) or "none",
            _CHECKPOINTING: False,
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
        }
        | steps
        | checked_options(settings.trainer_options)
    )


def identity_of(settings: TrainSettings, data: Path) -> dict[str, Any]:
    """What a checkpoint belongs to: result parameters and the hash of the tokenised rows."""
    files = sorted(p for side in ("train", "eval") for p in (data / side).glob("*.arrow"))
    return {
        "parameters": settings.result_parameters(),
        "data": sha256_of_json({f"{p.parent.name}/{p.name}": sha256_of_file(p) for p in files}),
    }


def _first_exchange(args: SFTConfig) -> None:
    """The first all-reduce, where a broken link between processes shows: it ends after 60 s instead of 30 minutes."""
    if args.world_size > 1:
        with within(HANG_SECONDS):
            dist.all_reduce(torch.ones(1, device=args.device))
            if args.device.type == "cuda":
                torch.cuda.synchronize()


def _barrier(world: int) -> None:
    if world > 1:
        dist.barrier()


def _flops(model: PreTrainedModel) -> Any:
    config = model.config.get_text_config()
    head = model.get_output_embeddings().weight.numel()
    embedding = model.get_input_embeddings().weight.numel()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    body = sum(p.numel() for p in model.parameters()) - embedding - (0 if tied else head)
    return flops_of(body, head, config.num_hidden_layers, config.hidden_size)


def _announce(job: Job, args: SFTConfig, steps: int, model: PreTrainedModel) -> None:
    """Records what was derived from settings, data and machine, and that a session begins."""
    plan = job.loader.plan
    derived = {
        "world_size": args.world_size,
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type,
        "precision": "fp16" if args.fp16 else "bf16" if args.bf16 else "fp32",
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "steps_per_epoch": len(job.loader),
        "microbatches_per_step": round(
            sum(len(r) for rows in plan.steps(0) for r in plan.deal(rows, args.world_size)) / len(job.loader), 2
        ),
    }
    data = {
        "train_rows": len(plan.lengths),
        "train_tokens": int(plan.lengths.sum()),
        "train_supervised_tokens": int(job.loader.supervised.sum()),
        "eval_rows": len(job.eval_rows),
        "data_key": job.identity["data"],
        "eval_hash": read_json(job.settings.run_path / "data" / "summary.json").get("eval_hash"),
    }
    if job.records.active:
        path = job.folder / "settings.json"
        write_json(
            path, {"schema": 1, "settings": job.settings.model_dump(mode="json"), "derived": derived, "data": data}
        )
    time = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"session": job.session, "step": job.loader.first_step, "world_size": args.world_size, "time": time}
    job.records.metric({"kind": "session"} | facts)
    job.records.progress("started", **(facts | derived))


def _end(trainer: SmallchatTrainer, job: Job, tokenizer: Any) -> None:
    """Writes the final model, then measures it; or says how far a paused run is."""
    step, steps = trainer.state.global_step, trainer.state.max_steps
    if step < steps:
        job.records.progress("paused", step=step, steps=steps)
        return
    if trainer.is_world_process_zero():
        with replaced(job.folder / "final") as partial:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    trainer.evaluate()
    job.records.progress("finished", step=step, steps=steps)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    if dist.is_initialized() and status == 0:
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads of libraries must not keep a failed rank alive
