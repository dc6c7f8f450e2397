"""The torchrun program: `torchrun … -m nbutils.train.worker SETTINGS.json`.

SETTINGS.json holds `{"settings": {parameters of the training stage}}`; the run folder named there holds the data, and
everything that training makes goes into `<run>/train/`. Nothing in here knows how many machines there are.

To pause it, make the file `pause-requested` in the run folder: all ranks see it at a step boundary, and save. SIGTERM
to torchrun asks the same, but 30 s later torchrun ends its workers with SIGKILL, checkpoint or not.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from nbutils.core.errors import UserError
from nbutils.core.files import Json, link_tree, read_json, sha256_of_file, sha256_of_json, shown, write_json
from nbutils.core.run.checkpoints import BEST, Checkpoint, check_identity, half_written, newest_whole
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef
from nbutils.core.run.record import machine, versions
from nbutils.core.torchrun import EXIT_USER_ERROR, leave, run_worker, within
from nbutils.train.arguments import Arguments, trainer_arguments
from nbutils.train.base import ensure_base
from nbutils.train.batches import BatchPlan, StepLoader
from nbutils.train.control import Budget, Records, matrix_speed, pause_requests
from nbutils.train.dataset import TokenRows
from nbutils.train.keeper import disk_is_full
from nbutils.train.kernels import make_ready
from nbutils.train.memory import with_microbatch
from nbutils.train.rehearsal import fixed
from nbutils.train.settings import TrainSettings
from nbutils.train.trainer import Job, SmallchatTrainer

HANG_SECONDS = 60.0
"""How long the workers' first exchange may take; on several machines ten times as long."""


def main(arguments: list[str]) -> int:
    """Runs one rank; the exit status is 0 also for a pause."""
    try:
        settings = read_settings(Path(*arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    requested = pause_requests(settings.run_path)
    return run_worker(Run(settings.run_path).training, lambda: _train_on_a_disk_with_room(settings, requested))


def read_settings(path: Path) -> TrainSettings:
    """The settings in a SETTINGS.json. UserError where there is none, or it holds something else."""
    try:
        values = read_json(path)["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{shown(path)} holds no settings of a training run ({type(error).__name__}: {error}); write it with "
            "`python -m nbutils settings PROFILE`."
        ) from None
    return TrainSettings.checked(values)


def _train_on_a_disk_with_room(settings: TrainSettings, requested: Callable[[], bool]) -> None:
    try:
        train(settings, requested)
    except Exception as error:
        if isinstance(error, UserError) or not disk_is_full(error):
            raise
        raise UserError(
            f"The disk of {shown(settings.run_path)} is full, so training stopped; free some and run again: it resumes "
            "from the last checkpoint."
        ) from error


def train(settings: TrainSettings, requested: Callable[[], bool]) -> None:
    """Trains from the base or the newest checkpoint to the end or to a pause."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    run = Run(settings.run_path)
    data = run.rows
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.training / "trackers"))
    args = _joined(settings, run.training)
    world, everyone = args.world_size, args.distributed_state
    records = Records(run.training, active=args.process_index == 0)
    if records.active:
        ensure_base(settings, run.base, data)
        for partial in (*half_written(run.checkpoints_folder), *half_written(run.training)):
            shutil.rmtree(partial)
    everyone.wait_for_everyone()
    settings = gather_object([with_microbatch(settings)])[0]  # rank 0's
    identity = identity_of(settings, data)
    checkpoint, passed_over = newest_whole(run.checkpoints_folder)
    if checkpoint:
        check_identity(checkpoint, identity)
    step = checkpoint.step if checkpoint else 0
    everyone.wait_for_everyone()
    records.rewind(step)
    for damaged, words in passed_over.items():
        if records.active:
            damaged.set_aside()
        records.progress("warning", message=f"The checkpoint {damaged.name} {words} and is passed over.")

    tokenizer = AutoTokenizer.from_pretrained(run.base)
    rows = TokenRows.for_training(data, settings, tokenizer).on(args.device)
    plan = BatchPlan.of(rows, settings)
    loader = StepLoader(rows, plan, args.process_index, world, step)
    eval_rows = TokenRows.load(data / "eval", "assistant").on(args.device)
    job = Job(run, settings, identity, loader, eval_rows, records, Budget(requested, settings.budget_minutes))
    if checkpoint:
        state = job.counters.load(checkpoint.path)
        job.budget.slowest |= state["slowest"]
        vars(job.best).update(state["best"])
        if checkpoint.manifest["world_size"] != world:
            records.progress("warning", message="Resumed with another number of processes: not bit-identical.")
    steps, facts = plan.total_steps(settings.epochs, settings.max_steps), None
    if settings.finish_in_minutes:
        facts = _fixed_before(settings, run, checkpoint) or fixed(tokenizer, args, job)
        args.max_steps = steps = facts["steps"]
    cooling = settings.cooldown_from(steps)
    if checkpoint and cooling is not None and checkpoint.step > cooling and checkpoint.fact("open"):
        raise UserError(
            f"{shown(checkpoint.path)} is behind step {cooling}, at which the cool-down of {steps} steps begins: make "
            "the run longer, or cool an earlier checkpoint down (run --cool-down)."
        )
    args.warmup_steps = settings.checked_warmup(steps, len(loader))
    args.lr_scheduler_kwargs = settings.schedule_options(steps)
    trainer = SmallchatTrainer(ModelRef.parse(str(run.base)).load(), tokenizer, args, job)
    for message in filter(None, make_ready(trainer)):
        records.progress("warning", message=message)
    if records.active:
        _restore_best(run.checkpoints_folder / BEST, checkpoint)
    _announce(trainer, steps, facts)
    if any(gather_object([requested()])):  # while all this was made ready: nothing is evaluated any more either
        records.progress("paused", step=step, steps=steps)
        return
    trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
    _end(trainer)


def identity_of(settings: TrainSettings, data: Path) -> Json:
    """What a checkpoint belongs to: result parameters and the hash of the tokenised rows.

    The files that the base came from are none of it: they were read once, into `train/base`, and may be gone since.
    """
    files = sorted(p for side in ("train", "eval") for p in (data / side).glob("*.arrow"))
    return {
        "parameters": settings.own_parameters(),
        "data": sha256_of_json({f"{p.parent.name}/{p.name}": sha256_of_file(p) for p in files}),
    }


def _joined(settings: TrainSettings, folder: Path) -> Arguments:
    """The SFTConfig of this process, which has then met the others and exchanged a number with them.

    A broken link shows in either: gloo connects while the SFTConfig is made, NCCL at the first all-reduce. Both end
    after 60 s instead of 30 minutes, on several machines after ten times that: their imports take unequal times.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return trainer_arguments(settings, folder)
    seconds = HANG_SECONDS * (10 if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1 else 1)
    with within(seconds, folder):
        args = trainer_arguments(settings, folder)
    with within(seconds, folder):
        dist.all_reduce(torch.ones(1, device=args.device))
        if args.device.type == "cuda":
            torch.cuda.synchronize()
    return args


def _restore_best(best: Path, checkpoint: Checkpoint | None) -> None:
    """The best model as the checkpoint knows it: a later one is of steps that are taken again."""
    shutil.rmtree(best, ignore_errors=True)
    if checkpoint and (checkpoint.path / BEST).is_dir():
        link_tree(checkpoint.path / BEST, best)


def _fixed_before(settings: TrainSettings, run: Run, checkpoint: Checkpoint | None) -> Json | None:
    """The number of steps that an earlier session has fixed, and by what; the same on all ranks.

    UserError where it was for other minutes.
    """
    path = run.training / "settings.json"
    facts = (read_json(path) if path.is_file() else {}).get("derived", {}).get("measured")
    if checkpoint and not facts:  # the settings were written anew
        facts = {"steps": read_json(checkpoint.path / "trainer_state.json")["max_steps"]}
    facts = gather_object([facts])[0]
    if facts and facts.get("minutes") not in (None, settings.finish_in_minutes):
        raise UserError(
            f"finish_in_minutes was {facts['minutes']:g} when it fixed {facts['steps']} steps: set it back, or set it "
            "to 0 and give max_steps."
        )
    return facts


def _announce(trainer: SmallchatTrainer, steps: int, measured: Json | None = None) -> None:
    """Records what was derived from settings, data and machine, and that a session begins."""
    job, args, settings = trainer.job, trainer.args, trainer.job.settings
    loader, plan, records = job.loader, job.loader.plan, job.records
    with trainer.accelerator.autocast():
        job.counters.peak = sum(gather_object([matrix_speed(args.device)]))
    dealt = sum(len(rank) for rows in plan.steps(0) for rank in plan.deal(rows, args.world_size))
    derived = {
        "world_size": args.world_size,
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type,
        "precision": "fp16" if args.fp16 else "bf16" if args.bf16 else "fp32",
        "compiled": trainer.compiled,
        "tokens_per_microbatch": plan.tokens_per_microbatch,
        "steps": steps,
        "steps_per_epoch": len(loader),
        "microbatches_per_step": round(dealt / len(loader), 2),
        "matrix_flops_per_second": round(job.counters.peak),
    } | ({"measured": measured} if measured else {})
    if records.active:
        eval_hash = read_json(Run(settings.run_path).rows / "summary.json").get("eval_hash")
        given = {"schema": 1, "settings": settings.model_dump(mode="json"), "machine": machine(), "derived": derived}
        write_json(records.folder / "settings.json", given | {"data": {"eval_hash": eval_hash}})
    now = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"session": records.session, "step": loader.first_step, "world_size": args.world_size, "time": now}
    made_with = {"supervise": settings.supervise, "versions": versions()}
    records.add("metric", {"kind": "session"} | facts | made_with)
    records.progress("started", **(facts | derived))
    if measured:
        message = f"{steps:,} optimizer steps fit into finish_in_minutes; max_steps {steps} makes the same model"
        seconds = ", ".join(f"{name} {value:.3g} s" for name, value in measured.get("seconds", {}).items())
        records.progress("warning", message=f"{message} ({seconds or 'measured in an earlier session'}).")


def _end(trainer: SmallchatTrainer) -> None:
    """Measures the last model, and writes the one that is kept; or says how far a paused run is."""
    records, state = trainer.job.records, trainer.state
    done = {"step": state.global_step, "steps": state.max_steps}
    if state.global_step < state.max_steps and not trainer.out_of_patience:
        records.progress("paused", **done)
        return
    if not trainer.out_of_patience:
        trainer.evaluate()
    done["chosen"] = gather_object([trainer.keeper.write_models() if records.active else 0])[0]
    trainer.write_held_out(done["chosen"])
    if records.active:
        records.add("metric", {"kind": "end"} | done)
    records.progress("finished", **done)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
