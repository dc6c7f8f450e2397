"""The training worker with a fault planted at a named point, for the fault suite.

FAULT is `point:nth:rank`: at the nth passing of the point, the process of that rank (`all` for every rank) makes the
file `fault` in the run folder, and kills itself with SIGKILL or does what the point is named after.
"""

import itertools
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from nbutils.core.run import pause
from nbutils.core.torchrun import leave
from nbutils.train import keeper, trainer, worker


def main():
    """Plants the fault and trains; the exit status."""
    point, nth, rank = os.environ["FAULT"].split(":")
    worker.HANG_SECONDS = float(os.environ.get("HANG_SECONDS", worker.HANG_SECONDS))
    if rank in ("all", os.environ["RANK"]):
        plant(point, int(nth), worker.read_settings(Path(sys.argv[1])).run_path)
    return worker.main(sys.argv[1:])


def plant(point, nth, run):
    """Puts the fault before the nth call of a function; what it does to a loss, or `after` all models, behind it."""
    owner, name, work = POINTS[point]
    original, passed = getattr(owner, name), itertools.count(1)

    def planted(*args, **kwargs):
        now = next(passed) == nth
        if now:
            (run / "fault").touch()
            work(run)
        result = original(*args, **kwargs)
        if now and point == "not_a_number":
            result["loss_sum"] = result["loss_sum"] * float("nan")
        if now and point == "after_models":
            kill(run)
        return result

    setattr(owner, name, planted)


def kill(run):
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(run):
    time.sleep(3600)


def fill_the_disk(run):
    """Leaves so many KiB on the file system of `train/` as LEAVES says."""
    with suppress(OSError):
        disk = run / "train"
        (disk / "balloon").write_bytes(bytes(shutil.disk_usage(disk).free - 1024 * int(os.environ["LEAVES"])))


own = trainer.SmallchatTrainer
POINTS = {
    "mid_step": (own, "compute_loss", kill),
    "evaluation": (trainer, "exact_loss", kill),
    "samples": (trainer, "sample_replies", kill),
    "before_rename": (Path, "rename", kill),
    "after_rename": (keeper, "prune", kill),
    "checkpoint_half_written": (own, "_save_scaler", kill),
    "best": (keeper.Keeper, "_keep", kill),
    "model": (keeper.Keeper, "_write_model", kill),
    "link": (keeper, "link_tree", kill),
    "best_again": (worker, "link_tree", kill),
    "final": (keeper, "replaced", kill),
    "after_models": (keeper.Keeper, "write_models", lambda run: None),
    "not_a_number": (own, "compute_loss", lambda run: None),
    "never_arrives": (worker, "trainer_arguments", sleep),
    "never_joins": (worker.dist, "all_reduce", sleep),
    "asks_for_a_pause": (own, "training_step", pause.request),
    "disk_fills_before_step": (own, "training_step", fill_the_disk),
    "disk_fills_in_checkpoint": (own, "_save_optimizer_and_scheduler", fill_the_disk),
}
"""Each point's function, and what happens before its call."""

if __name__ == "__main__":
    leave(main())
