"""The training worker with a fault planted at a named point, for the fault suite.

FAULT is `point:nth:rank`: at the nth passing of the point, the process of that rank (`all` for every rank) kills
itself with SIGKILL, or does what the point is named after (raises, never joins, fills the disk, …). A file beside the
run remembers that it has happened, so that the next start runs through.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nbutils.core.files import read_json
from nbutils.core.run import checkpoints, pause
from nbutils.train import trainer, worker


def main() -> int:
    point, nth, rank = os.environ["FAULT"].split(":")
    worker.HANG_SECONDS = float(os.environ.get("HANG_SECONDS", worker.HANG_SECONDS))
    if rank in ("all", os.environ["RANK"]):
        done = Path(read_json(Path(sys.argv[1]))["settings"]["run_dir"]) / f"fault-{os.environ['RANK']}"
        if not done.exists():
            POINTS[point](Bomb(int(nth), done, WORK.get(point, kill)))
    return worker.main(sys.argv[1:])


def kill(run: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(run: Path) -> None:
    raise RuntimeError(f"planted, with the secret {os.environ.get('HF_TOKEN', '')}")


def sleep(run: Path) -> None:
    time.sleep(3600)


def fill_the_disk(run: Path) -> None:
    """Writes a file until the file system of the run is full, and leaves so many KiB as BALLOON_LEAVES says."""
    with suppress(OSError), (run / "balloon").open("wb", buffering=0) as balloon:
        while True:
            balloon.write(b"x" * 4096)
    size = (run / "balloon").stat().st_size
    os.truncate(run / "balloon", max(0, size - 1024 * int(os.environ.get("BALLOON_LEAVES", "0"))))


class Bomb:
    """Counts passings, and at the nth does its work."""

    def __init__(self, nth: int, done: Path, work: Callable[[Path], None] = kill) -> None:
        self.left, self.done, self.work = nth, done, work

    def pass_by(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.done.touch()
            self.work(self.done.parent)


def around(owner: Any, name: str, bomb: Bomb, *, after: bool) -> None:
    """Plants the bomb before or after a function."""
    original: Callable[..., Any] = getattr(owner, name)

    def planted(*args: Any, **kwargs: Any) -> Any:
        if not after:
            bomb.pass_by()
        result = original(*args, **kwargs)
        if after:
            bomb.pass_by()
        return result

    setattr(owner, name, planted)


def in_rename(bomb: Bomb, after: bool) -> None:
    original = Path.rename

    def rename(self: Path, target: Any) -> Path:
        checkpoint = self.suffix == checkpoints.PARTIAL
        if checkpoint and not after:
            bomb.pass_by()
        result = original(self, target)
        if checkpoint and after:
            bomb.pass_by()
        return result

    Path.rename = rename  # type: ignore[method-assign]


def in_loss(bomb: Bomb) -> None:
    """Makes one loss not a number."""
    original = trainer.SmallchatTrainer.compute_loss

    def planted(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        bomb.pass_by()
        if bomb.left == 0:
            out["loss_sum"] = out["loss_sum"] * float("nan")
        return out

    trainer.SmallchatTrainer.compute_loss = planted  # type: ignore[method-assign]


POINTS: dict[str, Callable[[Bomb], None]] = {
    "mid_step": lambda bomb: around(trainer.SmallchatTrainer, "compute_loss", bomb, after=True),
    "evaluation": lambda bomb: around(trainer, "exact_loss", bomb, after=False),
    "samples": lambda bomb: around(trainer, "sample_replies", bomb, after=False),
    "before_rename": lambda bomb: in_rename(bomb, after=False),
    "after_rename": lambda bomb: in_rename(bomb, after=True),
    "checkpoint_half_written": lambda bomb: around(trainer.SmallchatTrainer, "_save_scaler", bomb, after=False),
    "final": lambda bomb: around(worker, "replaced", bomb, after=False),
    "raises": lambda bomb: around(trainer.SmallchatTrainer, "compute_loss", bomb, after=True),
    "not_a_number": in_loss,
    "never_arrives": lambda bomb: around(worker, "trainer_arguments", bomb, after=False),
    "never_joins": lambda bomb: around(worker.dist, "all_reduce", bomb, after=False),
    "asks_for_a_pause": lambda bomb: around(trainer.SmallchatTrainer, "training_step", bomb, after=False),
    "disk_fills_before_step": lambda bomb: around(trainer.SmallchatTrainer, "training_step", bomb, after=False),
    "disk_fills_in_checkpoint": lambda bomb: around(
        trainer.SmallchatTrainer, "_save_optimizer_and_scheduler", bomb, after=False
    ),
}

WORK: dict[str, Callable[[Path], None]] = {
    "raises": fail,
    "not_a_number": lambda run: None,
    "never_arrives": sleep,
    "never_joins": sleep,
    "asks_for_a_pause": pause.request,
    "disk_fills_before_step": fill_the_disk,
    "disk_fills_in_checkpoint": fill_the_disk,
}
"""What happens at a point where that is not SIGKILL."""

if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
