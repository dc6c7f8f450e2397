"""What training leaves on the disk: checkpoints, the best model so far, and in the end the final one and the last."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import gather_object

from nbutils.core.files import link_tree, replaced, shown
from nbutils.core.run.checkpoints import BEST, Checkpoint, prune
from nbutils.train.settings import OF_LENGTH

if TYPE_CHECKING:
    from nbutils.train.trainer import SmallchatTrainer


class Keeper:
    """Writes what a trainer holds at the step reached; all ranks must call it. A full disk costs that writing alone."""

    def __init__(self, trainer: SmallchatTrainer) -> None:
        self.trainer, self.job = trainer, trainer.job
        self.best = Checkpoint(self.job.run.checkpoints_folder / BEST)

    def keep_best(self) -> bool:
        """Keeps the weights as the best so far, if `keep` asks for it; whether the disk had room."""
        problem = self._tried(self._keep, self.best)
        if problem:
            shutil.rmtree(self.best.partial, ignore_errors=True)
            self._warn(f"The best weights so far could not be kept: {problem}.")
        return not problem

    def write_checkpoint(self) -> None:
        """Writes step-N whole or not at all."""
        job, step = self.job, self.trainer.state.global_step
        folder = job.run.checkpoints_folder
        checkpoint = Checkpoint.at(folder, step)
        problem = self._tried(self._write, checkpoint) or self._tried(self._seal, checkpoint)
        if self.trainer.is_world_process_zero():
            shutil.rmtree(checkpoint.partial, ignore_errors=True)  # before the remark, which needs room on the disk
            prune(folder, job.settings.checkpoints_kept)
        if problem:
            self._warn(f"No checkpoint at this step: {problem}.")
        else:
            job.records.progress("checkpoint", step=step)

    def write_models(self) -> int:
        """Writes `final`, the model that is kept, and `last` where that is another; the step of the final one.

        The first rank alone calls it.
        """
        run, best, step = self.job.run, self.best.path, self.trainer.state.global_step
        chosen = self.job.best.step if best.is_dir() else step
        shutil.rmtree(run.last, ignore_errors=True)
        if chosen < step:
            with replaced(run.last) as partial:
                self._write_model(partial)
        with replaced(run.final) as partial:
            if best.is_dir():
                link_tree(best, partial)
            else:
                self._write_model(partial)
        shutil.rmtree(best, ignore_errors=True)
        return chosen

    def _tried(self, write: Callable[[Checkpoint], None], checkpoint: Checkpoint) -> str | None:
        """Does a part of writing a checkpoint; in words if the disk was too full for it on any rank."""
        problem = None
        try:
            write(checkpoint)
        except Exception as error:
            if not disk_is_full(error):
                raise
            problem = f"writing to {shown(checkpoint.path.parent)} failed, as on a full disk ({error})"
        return next(filter(None, gather_object([problem])), None)

    def _warn(self, message: str) -> None:
        self.job.records.progress("warning", message=message)

    def _keep(self, best: Checkpoint) -> None:
        if self.trainer.is_world_process_zero() and self.job.settings.keep == "best":
            self._write_model(best.partial)
            shutil.rmtree(best.path, ignore_errors=True)
            best.partial.rename(best.path)

    def _write(self, checkpoint: Checkpoint) -> None:
        trainer, folder, best = self.trainer, str(checkpoint.partial), self.best.path
        if trainer.is_world_process_zero():
            if best.is_dir():
                link_tree(best, checkpoint.partial / BEST)
            if best.is_dir() and self.job.best.step == trainer.state.global_step:
                link_tree(best, checkpoint.partial)
            else:
                self._write_model(checkpoint.partial)
        trainer._save_optimizer_and_scheduler(folder)
        trainer._save_scaler(folder)
        trainer._save_rng_state(folder)
        if trainer.is_world_process_zero():
            trainer.state.save_to_json(str(checkpoint.partial / "trainer_state.json"))
            self.job.counters.save(checkpoint.partial, slowest=self.job.budget.slowest, best=asdict(self.job.best))

    def _write_model(self, folder: Path) -> None:
        self.trainer.accelerator.unwrap_model(self.trainer.model).save_pretrained(folder)
        self.trainer.processing_class.save_pretrained(folder)

    def _seal(self, checkpoint: Checkpoint) -> None:
        if self.trainer.is_world_process_zero():
            state = self.trainer.state
            step, cooling = state.global_step, self.job.settings.cooldown_from(state.max_steps)
            constant = cooling is not None and step <= cooling
            facts = {"open": OF_LENGTH if constant else (), "pinned": step == cooling}
            checkpoint.seal(self.job.identity, {"step": step, "world_size": self.trainer.args.world_size} | facts)


def disk_is_full(error: Exception) -> bool:
    """Whether a write failed as on a full disk; torch's writer of archives names neither the cause nor its number."""
    words = ("No space left", "PytorchStreamWriter failed", "unexpected pos")
    return getattr(error, "errno", None) == errno.ENOSPC or any(phrase in str(error) for phrase in words)
