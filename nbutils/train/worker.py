"""The torchrun program: `torchrun … -m nbutils.train.worker SETTINGS.json`.

SETTINGS.json holds `{"settings": {parameters of the training stage}}`; the run folder named there holds the data, and
everything that training makes goes into `<run>/train/`. Nothing in here knows how many machines there are.

To pause it, make the file `pause-requested` in the run folder: all ranks see it at a step boundary, and save. SIGTERM
to torchrun asks the same, but 30 s later torchrun ends its workers with SIGKILL, checkpoint or not.
"""

from __future__ import annotations

import os
import sys
import time
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

from nbutils.core.children import end_with_parent
from nbutils.core.errors import UserError
from nbutils.core.files import read_json, replaced, sha256_of_file, sha256_of_json, shown, write_json
from nbutils.core.inputs import FILES
from nbutils.core.models import load_model
from nbutils.core.provenance import machine, versions
from nbutils.train.arguments import trainer_arguments
from nbutils.train.base import ensure_base
from nbutils.train.batches import BatchPlan
from nbutils.train.checkpoints import clear_partial, disk_is_full, newest_valid, set_aside
from nbutils.train.control import PauseRequests, StepControl
from nbutils.train.dataset import TokenRows
from nbutils.train.determinism import relax_where_needed
from nbutils.train.loader import StepLoader
from nbutils.train.meters import Meters, flops_of
from nbutils.train.records import Records
from nbutils.train.settings import TrainSettings
from nbutils.train.trainer import Job, SmallchatTrainer
from nbutils.train.watchdog import HANG_SECONDS, RANK_PREFIX, STARTED, within

EXIT_USER_ERROR = 3
"""Exit status after an error that a person can mend."""

PEER_LOST, PEER_LOST_SECONDS = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited"), 3.0
"""What an exchange says where another rank has gone; this rank then ends a little later, since torchrun blames the
rank that it sees end first, and both may end within one of its looks."""


def main(arguments: list[str]) -> int:
    """Runs one rank; the exit status is 0 also for a pause."""
    if len(arguments) != 1:
        print("usage: torchrun … -m nbutils.train.worker SETTINGS.json", file=sys.stderr)
        return 2
    end_with_parent()
    try:
        settings = read_settings(Path(arguments[0]))
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
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
                print(f"{RANK_PREFIX.format(os.environ.get('RANK', '0'))}{line}", file=sys.stderr, flush=True)
            if any(words in str(error) for words in PEER_LOST):
                time.sleep(PEER_LOST_SECONDS)
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


def read_settings(path: Path) -> TrainSettings:
    """The settings in a SETTINGS.json. UserError where there is none, or it holds something else."""
    try:
        values = read_json(path)["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UserError(
            f"{shown(path)} holds no settings of a training run ({problem}); write it with `python -m nbutils settings "
            "PROFILE`."
        ) from None
    return TrainSettings.checked(values)


def train(settings: TrainSettings, records: Records, requests: PauseRequests) -> None:
    """Trains from the base or the newest checkpoint to the end or to a pause."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    run, folder = settings.run_path, settings.run_path / "train"
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "trackers"))
    args = _joined(settings, folder)
    rank, world = args.process_index, args.world_size
    if rank == 0:
        ensure_base(settings, folder / "base", run / "data")
        clear_partial(folder / "checkpoints")
    _barrier(world)
    set_seed(settings.seed)
    identity = identity_of(settings, run / "data")
    checkpoint, passed_over = newest_valid(folder / "checkpoints", identity)
    step = int(read_json(checkpoint / "manifest.json")["step"]) if checkpoint else 0
    _barrier(world)
    session = records.rewind(step) + 1
    if rank == 0:
        set_aside(passed_over)
    for path, damage in passed_over.items():
        records.progress("warning", message=f"The checkpoint {path.name} {damage} and is passed over.")

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
    if torch.are_deterministic_algorithms_enabled() and (problem := relax_where_needed(trainer)):
        records.progress("warning", message=problem)
    steps = plan.total_steps(settings.epochs, settings.max_steps)
    _announce(job, args, steps, model)
    if _pause_asked(requests, args):  # while all this was made ready: nothing is measured any more either
        records.progress("paused", step=step, steps=steps)
        return
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _end(trainer, job, tokenizer)


def identity_of(settings: TrainSettings, data: Path) -> dict[str, Any]:
    """What a checkpoint belongs to: result parameters and the hash of the tokenised rows.

    The files that the base came from are none of it: they were read once, into `train/base`, and may be gone since.
    """
    files = sorted(p for side in ("train", "eval") for p in (data / side).glob("*.arrow"))
    parameters = settings.result_parameters()
    parameters.pop(FILES, None)
    return {
        "parameters": parameters,
        "data": sha256_of_json({f"{p.parent.name}/{p.name}": sha256_of_file(p) for p in files}),
    }


def _joined(settings: TrainSettings, folder: Path) -> SFTConfig:
    """The SFTConfig of this process, which has then met the others and exchanged a number with them.

    A broken link shows in either: gloo connects while the SFTConfig is made, NCCL at the first all-reduce. Both end
    after 60 s instead of 30 minutes, on several machines after ten times that: their imports take unequal times.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return trainer_arguments(settings, folder)
    seconds = HANG_SECONDS * (10 if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1 else 1)
    with within(seconds):
        args = trainer_arguments(settings, folder)
    with within(seconds):
        dist.all_reduce(torch.ones(1, device=args.device))
        if args.device.type == "cuda":
            torch.cuda.synchronize()
    return args


def _pause_asked(requests: PauseRequests, args: SFTConfig) -> bool:
    """Whether any rank has been asked to pause; the same answer on all."""
    asked = torch.tensor(float(requests()), device=args.device)
    if args.world_size > 1:
        dist.all_reduce(asked)
    return bool(asked)


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
        given = {"schema": 1, "settings": job.settings.model_dump(mode="json"), "machine": machine()}
        write_json(path, given | {"derived": derived, "data": data})
    now = datetime.now(UTC).isoformat(timespec="seconds")
    step = job.loader.first_step
    facts = {"session": job.session, "step": step, "world_size": args.world_size, "time": now}
    made_with = {"supervise": job.settings.supervise, "versions": versions()}
    job.records.metric({"kind": "session"} | facts | made_with)
    logged = step - int(job.meters.window["steps"])
    job.records.progress("started", **(facts | derived), logged=logged)


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
