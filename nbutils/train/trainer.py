"""TRL's SFTTrainer with some parts replaced, each by a module of its own.

Replaced: batches (`batches`), the loss (`loss`), evaluation (`evaluation`), logging (`control`), checkpoints and models
(`keeper`). Kept: the loop over epochs and steps, optimizer, schedule, clipping, mixed precision, DDP, state files,
trackers.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, reduce
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl import SFTTrainer

from nbutils.core.errors import UserError
from nbutils.core.files import Json
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef
from nbutils.train.arguments import Arguments
from nbutils.train.batches import StepBatch, StepLoader
from nbutils.train.control import Best, Budget, Counters, CountingScaler, Records, StepControl, flops_of
from nbutils.train.dataset import Microbatch, TokenRows
from nbutils.train.evaluation import ExactLoss, exact_loss, sample_replies
from nbutils.train.keeper import Keeper
from nbutils.train.loss import with_loss_in_forward
from nbutils.train.optimizer import Muon, hidden_matrices
from nbutils.train.settings import MUON, TrainSettings

NAMED_ROWS = 40
"""Rows of the training set that a non-finite loss names at most."""


@dataclass(frozen=True)
class Job:
    """What one session of a training run is made of."""

    run: Run
    settings: TrainSettings
    identity: Json
    loader: StepLoader
    eval_rows: TokenRows
    records: Records
    budget: Budget
    counters: Counters = field(default_factory=Counters)
    best: Best = field(default_factory=Best)


class SmallchatTrainer(SFTTrainer):
    """An SFTTrainer whose training step is a whole optimizer step of micro-batches."""

    held_out: ExactLoss
    """What the last evaluation found, over the tokens that `supervise` counts where training ended with it."""
    compiled = False
    """Whether the layers are compiled where they are trained (`kernels`)."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: Arguments, job: Job) -> None:
        adamw = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        muon = (Muon, adamw | {"hidden": hidden_matrices(model)}) if job.settings.optimizer == MUON else None
        super().__init__(
            model=model,
            args=args,
            optimizer_cls_and_kwargs=muon,
            train_dataset=job.loader.rows.rows,
            eval_dataset=None,
            processing_class=tokenizer,
            data_collator=lambda rows: rows,  # never called: the loader yields finished tensors
        )
        with_loss_in_forward(self.model)  # over the fused head that SFTTrainer installs
        self.job = job
        self.keeper = Keeper(self)
        self.remove_callback(PrinterCallback)
        self.add_callback(StepControl(self))
        self.stopping = False
        self.out_of_patience = False
        self.last_rows: list[np.ndarray] = []
        # static_graph would not do: with no_sync it crashes, or exchanges nothing (pytorch issues 143580, 187732)
        if self.accelerator.ddp_handler is not None:  # transformers 5.0 makes it later
            self.accelerator.ddp_handler.gradient_as_bucket_view = True  # what ranks exchanged is not copied once more
        if self.accelerator.scaler is not None:
            self.accelerator.scaler = CountingScaler(self.args.device.type)

    # ---- batches and loss ----

    def get_train_dataloader(self) -> StepLoader:
        """Our own rank-aware loader; accelerate does not touch it."""
        return self.job.loader

    def _get_num_items_in_batch(self, batch_samples: list[StepBatch], device: torch.device) -> None:
        """Each step brings its own count of labels, known on every rank without an exchange."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Counted in `control`."""
        return 0

    def training_step(self, model: torch.nn.Module, inputs: StepBatch, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of this rank's micro-batches; gradients are the global mean over supervised tokens."""
        started = time.perf_counter()
        model.train()
        device = self.args.device
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        # DDP averages gradients over ranks, so the sum of the ranks' losses is divided by count / world size.
        scale = self.args.world_size / max(1, inputs.supervised_tokens)
        losses = []
        for index, microbatch in enumerate([each.to(device) for each in inputs.microbatches]):  # all copied ahead
            last = index == len(inputs.microbatches) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    out = self.compute_loss(model, microbatch)
                self.accelerator.backward(out["loss_sum"] * scale)
            losses.append(out["loss_sum"].detach())
            sums += torch.stack([losses[-1].double(), out["correct"].double()])
        self._share(inputs, sums, losses)
        self.job.counters.add("data", inputs.seconds)
        self.job.counters.add("forward_backward", time.perf_counter() - started)
        return (sums[0] / max(1, inputs.supervised_tokens)).float()

    def compute_loss(self, model: torch.nn.Module, inputs: Microbatch, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        """Loss sum and correct count of one micro-batch, computed inside DDP's forward."""
        return model(microbatch=inputs)

    def _share(self, batch: StepBatch, sums: torch.Tensor, losses: list[torch.Tensor]) -> None:
        """One exchange a step: loss and accuracy summed over ranks, whether any loss is not finite, whether to stop."""
        stop = torch.full_like(sums[0], self.job.budget.is_spent())
        mine = torch.stack([*sums, sums[0].isfinite().logical_not(), stop])
        shared = reduce(mine, "sum")
        loss, correct, bad_ranks, stops = shared.tolist()
        if bad_ranks:
            bad_rows = [rows for rows, loss in zip(batch.rows, losses, strict=False) if not bool(torch.isfinite(loss))]
            self._stop_on_nonfinite("loss", bad_rows)
        sums.copy_(shared[:2])
        self.job.counters.count_step(batch, loss, correct, flops_of(self.model, batch))
        self.last_rows = batch.rows
        self.stopping = self.stopping or stops > 0

    def _stop_on_nonfinite(self, what: str, mine: list[np.ndarray]) -> None:
        """Raises the same sentence on every rank, with the rows of the micro-batches that each rank gives."""
        rows = sorted(gather_object([int(row) for rows in mine for row in rows]))
        named = ", ".join(map(str, rows[:NAMED_ROWS]))
        raise UserError(
            f"The {what} of step {self.state.global_step + 1} is not a finite number, so training stopped before the "
            f"update; the last checkpoint is whole. Lower the learning rate, or look at rows {named} of data/train."
        )

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        norm = super()._clip_grad_norm(model)
        if self.accelerator.scaler is None and not bool(torch.isfinite(norm)):
            self._stop_on_nonfinite("gradient norm", self.last_rows)
        return norm

    # ---- what is logged ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Writes our own row of exact sums in place of the stock averages; trackers get the same numbers."""
        if "loss" not in logs:
            return
        row = self.job.counters.row(
            learning_rate=float(logs["learning_rate"]),
            grad_norm=float(logs["grad_norm"]),
            skipped_steps=getattr(self.accelerator.scaler, "skipped_steps", 0),
        )
        self._record("train", row | {"session": self.job.records.session})

    def _record(self, kind: str, row: Json) -> None:
        step = self.state.global_step
        row = {"kind": kind, "step": step, "epoch": round(step / len(self.job.loader), 4)} | row
        self.job.records.add("metric", row)
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        self.callback_handler.on_log(self.args, self.state, self.control, numbers)

    # ---- evaluation ----

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Exact loss over the whole evaluation set, and sample replies, at the step reached; the best is kept."""
        started, job, step = time.perf_counter(), self.job, self.state.global_step
        self.control.should_evaluate = False  # or the end of an epoch would ask for it once more
        model, budget = self.accelerator.unwrap_model(self.model), job.settings.tokens_per_microbatch
        with self.accelerator.autocast():
            self.held_out = exact_loss(model, job.eval_rows, budget)
            found = self.held_out.facts()
            ends = self._judge(self.held_out.mean)
            if step in (0, self.state.max_steps) or ends:  # how well the whole text is predicted, headers too
                whole = exact_loss(model, job.eval_rows.counting("all"), budget)
                found["eval_loss_all_tokens"] = whole.mean
                self.held_out = whole if job.settings.supervise == "all" else self.held_out
        if self.is_world_process_zero():
            for sample in sample_replies(model, self.processing_class, job.settings.sample_prompts):
                job.records.add("sample", {"step": step} | sample)
        self.accelerator.wait_for_everyone()
        seconds = time.perf_counter() - started
        self._record("eval", found | {"seconds": round(seconds, 3)})
        if ends:
            self.job.counters.start_clock()  # as at the end of any run, no row of training counts it
            self.out_of_patience = self.control.should_training_stop = self.control.should_log = True
            self.control.should_save = False
        else:
            self._note_pause("evaluation", seconds)
        return found

    def _judge(self, loss: float) -> bool:
        """Keeps the weights where no evaluation had so low a loss; whether patience ends training before its time."""
        job, best, step = self.job, self.job.best, self.state.global_step
        if step == 0:
            return False
        best.waited += 1
        if loss < best.eval_loss:
            best.waited = 0
            if self.keeper.keep_best():
                best.step, best.eval_loss = step, loss
        return 0 < job.settings.patience <= best.waited and step < self.state.max_steps

    def _note_pause(self, part: str, seconds: float) -> None:
        self.job.counters.add(part, seconds)
        self.job.counters.end_step()  # the next one begins after the pause
        self.job.budget.note("pause", seconds)

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Writes step-N by the keeper."""
        started = time.perf_counter()
        self.keeper.write_checkpoint()
        self._note_pause("checkpoint", time.perf_counter() - started)

    def write_held_out(self, chosen: int) -> None:
        """Writes what the final model, of step `chosen`, loses on each held-out conversation. All ranks must call it.

        The tokens that count are those of training; where the last evaluation was of another model, it is done anew.
        """
        job, settings = self.job, self.job.settings
        if chosen < self.state.global_step:
            model = ModelRef.parse(str(job.run.final)).load().to(self.args.device)
            with self.accelerator.autocast():
                rows = job.eval_rows.counting(settings.supervise)
                self.held_out = exact_loss(model, rows, settings.tokens_per_microbatch)
        if self.is_world_process_zero():
            self.held_out.save(job.run.heldout, job.run.rows / "eval")
