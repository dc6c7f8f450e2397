"""The trainer's own step, in this process: skipped fp16 steps, losses that are no numbers, determinism on a GPU."""

import os
from itertools import pairwise

import pytest
import torch
import torch._inductor.config
from transformers import TrainerCallback

from nbutils.core.errors import UserError
from nbutils.core.hardware import DeviceReport
from nbutils.core.torchrun import PROGRESS
from nbutils.train import arguments, worker
from nbutils.train.arguments import CHECKPOINTING
from nbutils.train.control import CountingScaler
from nbutils.train.kernels import CACHE, WORKSPACE, relax_where_needed
from nbutils.train.settings import TrainerOptions
from tests.train.runs import T4, flat, logged, small_settings

BARE = {"eval_steps": 0, "checkpoint_steps": 0, "sample_prompts": [], "max_steps": 6}


@pytest.fixture
def bare_trainer(tmp_path, monkeypatch):
    """The trainer as the worker makes it, for six steps and nothing beside them."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")

    def make(**changes):
        with pytest.raises(Made) as made:
            worker.train(small_settings(tmp_path, **BARE | changes), lambda: False)
        return made.value.args[0]

    def stop(trainer, *_):
        raise Made(trainer)

    monkeypatch.setattr(worker, "_announce", stop)
    return make


class Made(Exception):
    """Carries the trainer out of the worker before the first step."""


def weights_after_steps(trainer):
    """The weights after each optimizer step of a training to come."""
    after = []

    class Weights(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            after.append(flat(model))

    trainer.add_callback(Weights())
    return after


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused", "muon"])
def test_a_skipped_fp16_step_is_counted_and_the_schedule_waits(bare_trainer, tmp_path, optimizer):
    """Our step and the stock loop around it, with torch's scaler on the CPU and a gradient that overflows once.

    What goes on from the checkpoint behind it makes the same weights.
    """
    options = {"schedule": "linear", "warmup_fraction": 0.0, "max_grad_norm": 0.0, "learning_rate": 0.006}
    options |= {"optimizer": optimizer, "checkpoint_steps": 4}
    trainer = bare_trainer(**options)
    weights = weights_after_steps(trainer)
    trainer.accelerator.scaler = CountingScaler("cpu", init_scale=16.0)
    parameter = next(trainer.model.parameters())
    parameter.register_hook(lambda grad: grad * float("inf") if trainer.state.global_step == 2 else grad)
    trainer.train()
    rows = logged(tmp_path, "train")
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 1, 1, 1]
    rates = [0.006, 0.005, 0.004, 0.004, 0.003, 0.002]  # the skipped third step used none of the schedule
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates)
    moved = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert moved == [True, False, True, True, True]
    again = bare_trainer(**options)
    again.accelerator.scaler = scaler = CountingScaler("cpu")
    again.train(resume_from_checkpoint=str(tmp_path / "train" / "checkpoints" / "step-000004"))
    assert torch.equal(flat(again.model), weights[-1]) and (scaler.skipped_steps, scaler.get_scale()) == (1, 8.0)


def test_a_loss_that_is_no_number_stops_before_the_update_and_names_its_rows(bare_trainer):
    trainer = bare_trainer()
    weights, own, read = weights_after_steps(trainer), trainer.compute_loss, []

    def planted(model, inputs):
        out = own(model, inputs)
        if trainer.state.global_step == 2:
            read.append(inputs.input_ids)
            if len(read) == 2:
                out["loss_sum"] = out["loss_sum"] * float("nan")
        return out

    trainer.compute_loss = planted
    step = trainer.job.loader.plan.steps(0)[2]
    bad = trainer.job.loader.step_batch(step).rows[1]
    told = f"The loss of step 3 is not a finite number.*look at rows {', '.join(map(str, sorted(bad)))} of data/train"
    with pytest.raises(UserError, match=told):
        trainer.train()
    assert len(bad) < len(step) and len(weights) == 2 and torch.equal(flat(trainer.model), weights[1])


def test_where_nothing_can_be_compiled_it_is_said_and_training_goes_on(bare_trainer, tmp_path, monkeypatch):
    """With micro-batches of 0 tokens, too: half a step for each of two processes."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    trainer = bare_trainer(compile="always", max_steps=2, tokens_per_microbatch=0)
    torch._dynamo.reset()
    assert "could not be compiled" in (tmp_path / "train" / PROGRESS).read_text() and not trainer.compiled
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.job.identity["parameters"]["tokens_per_microbatch"] == 300


def test_layers_are_compiled_ahead_in_the_precision_of_training(bare_trainer, monkeypatch):
    """Steps would compile them once more, each session with its own rows. Without a compiler of machine code."""
    own, frames = torch.compile, torch._dynamo.utils.counters["frames"]
    monkeypatch.setattr(torch, "compile", lambda forward, **_: own(forward, dynamic=True, backend="eager"))
    torch._dynamo.reset()
    frames.clear()
    trainer = bare_trainer(compile="always", precision="bf16")
    ahead = frames["ok"]
    trainer.train()
    torch._dynamo.reset()
    assert trainer.compiled and 0 < ahead == frames["ok"]


OPTIONS = {"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6, "neftune_noise_alpha": 5.0, CHECKPOINTING: True,
           "ddp_bucket_cap_mb": 10, "ddp_timeout": 60, "run_name": "mine", "project": "mine"}  # fmt: skip


def test_every_trainer_option_trains(bare_trainer):
    names = {"activation_checkpointing", "gradient_checkpointing"}
    assert TrainerOptions.__annotations__.keys() - names == OPTIONS.keys() - names
    trainer = bare_trainer(max_steps=2, trainer_options=OPTIONS | {"adam_epsilon": "1e-6"})  # what YAML makes of it
    assert {name: getattr(trainer.args, name) for name in OPTIONS} == OPTIONS
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.fixture
def strictness(monkeypatch):
    """Leaves torch and the environment as they were."""
    monkeypatch.setenv(WORKSPACE, "")
    monkeypatch.delenv(WORKSPACE)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def test_a_gpu_is_made_deterministic_and_strictly(tmp_path, monkeypatch, strictness):
    monkeypatch.setattr(arguments, "Arguments", lambda **options: options)
    arguments.trainer_arguments(small_settings(tmp_path), tmp_path)
    assert not torch.are_deterministic_algorithms_enabled() and WORKSPACE not in os.environ  # the CPU is so already
    monkeypatch.setattr(arguments, "device_report", lambda: DeviceReport((T4,)))
    arguments.trainer_arguments(small_settings(tmp_path, deterministic="never"), tmp_path)
    assert not torch.are_deterministic_algorithms_enabled() and WORKSPACE not in os.environ
    assert arguments.trainer_arguments(small_settings(tmp_path), tmp_path)["fp16"]
    assert os.environ[WORKSPACE] == ":4096:8"
    # with warn_only torch's attention keeps its nondeterministic backward
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()


def test_a_model_without_a_deterministic_form_is_told_and_trains(bare_trainer, strictness):
    trainer = bare_trainer()
    torch.use_deterministic_algorithms(True)
    assert relax_where_needed(trainer) == "" and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert all(p.grad is None for p in trainer.model.parameters())
    own = trainer.compute_loss

    def planted(model, inputs):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
        return own(model, inputs)

    trainer.compute_loss = planted
    told = relax_where_needed(trainer)
    assert told.startswith("put_ has no deterministic form") and torch.is_deterministic_algorithms_warn_only_enabled()
