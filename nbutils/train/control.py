"""When the trainer logs, evaluates, saves and stops: decisions at step boundaries, the same on every rank."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nbutils.core import pause

if TYPE_CHECKING:
    from nbutils.train.trainer import SmallchatTrainer


FIRST_STEPS = 3
"""Steps logged one by one at the start, to be compared with the plain loop of notebook 02."""


class PauseRequests:
    """Whether somebody asked this process to pause: SIGTERM, SIGINT, SIGHUP, or the request file in the run folder."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.signalled = False

    def listen(self) -> None:
        """Takes the signals from now on; they only set a flag, the step under way is finished first.

        Under `nohup` SIGHUP stays ignored, as it asks for.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def __call__(self) -> bool:
        return self.signalled or pause.requested(self.run)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True


class StepControl(TrainerCallback):
    """Sets the trainer's flags after each optimizer step."""

    def __init__(self) -> None:
        self.trainer: SmallchatTrainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures the untrained model first."""
        if state.global_step == 0:
            self.trainer.evaluate()
        self.trainer.job.meters.restart_clock()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Logs, evaluates and saves every so many steps; on a pause saves and stops."""
        job, step = self.trainer.job, state.global_step
        settings = job.settings
        job.meters.end_step()
        last = step >= state.max_steps
        enough = 0 < settings.pause_after_steps <= step - job.loader.first_step
        pausing = (job.meters.stopping or enough) and not last
        control.should_log = step % settings.log_steps == 0 or step <= FIRST_STEPS or last
        control.should_evaluate = settings.eval_steps > 0 and step % settings.eval_steps == 0 and not last
        every = settings.checkpoint_steps
        control.should_save = pausing or (every > 0 and step % every == 0 and not last)
        if pausing or last:
            control.should_training_stop = True
        return control
