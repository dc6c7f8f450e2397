"""What is claimed of a CUDA device, proven on it: the cheapest and most telling first."""

import copy
import os
import shutil
from functools import cache
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from datasets import load_from_disk
from lm_eval.models.huggingface import HFLM
from torch.utils._python_dispatch import TorchDispatchMode

from nbutils.chat.models import load
from nbutils.core.chat_engine.sampling import Sampling
from nbutils.core.files import read_json, write_json
from nbutils.core.hardware import device_report
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef
from nbutils.evaluate.shared_prefix import SharedPrefixLM
from nbutils.publish.parity import check_parity
from nbutils.train.control import CountingScaler
from nbutils.train.memory import GIB, memory_need
from tests.chat.models import MODEL, chat, talk_as_generate
from tests.evaluate.test_shared_prefix import CHOICES, GIVEN, ROLLING, answers, made
from tests.train.forked import forked
from tests.train.runs import flat, logged, result, small_settings
from tests.train.test_equality import SGD
from tests.train.test_trainer import weights_after_steps

pytestmark = pytest.mark.gpu
ALONE = {"eval_steps": 0, "checkpoint_steps": 0, "sample_prompts": [], "processes": 1, "compile": "never"}
USUAL = {"processes": 1, "supervise_end": False}
"""A short training after which replies go on."""
AS_ON_THE_CPU = {"fp32": 0.02, "fp16": 0.05, "bf16": 0.05}
"""By how much, relatively, any of the first 20 losses may differ from the CPU's in float32."""


def needs(precision, device):
    """Skips what this device cannot compute."""
    if precision == "fp16" and device.type == "cpu":
        pytest.skip("gradients of fp16 are scaled on a GPU alone")
    if precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip(f"{torch.cuda.get_device_name()} computes no bf16")


class HostReads(TorchDispatchMode):
    """Collects the operations whose result the host has to know before it goes on: numbers read, masks as indices."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in self.READS or any(index is not None and index.dtype == torch.bool for index in indices):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_the_host_waits_for_nothing_inside_a_microbatch(bare_trainer, device):
    trainer, reads = bare_trainer(max_steps=2), HostReads()
    read, backward = trainer.compute_loss, trainer.accelerator.backward

    def watch(mode):
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)

    def watched_read(model, inputs):
        reads.__enter__()
        watch("error")
        return read(model, inputs)

    def watched_backward(loss):
        backward(loss)
        watch("default")
        reads.__exit__(None, None, None)

    trainer.compute_loss, trainer.accelerator.backward = watched_read, watched_backward
    try:
        trainer.train()
    finally:
        watch("default")
    assert trainer.state.global_step == 2 and not reads.found


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_scores_and_choices_are_those_of_lm_eval(device, precision):
    tolerance = {"abs": 1e-3} if precision == "fp32" else {"rel": 2e-2}
    model = made("llama").to(device, torch.float32 if precision == "fp32" else torch.float16)
    mine, theirs = SharedPrefixLM(model, **GIVEN), HFLM(model, **GIVEN)
    assert mine.device.type == device.type and mine.strategy == "shared rows"
    for requests in (ROLLING, CHOICES):
        found, expected = (answers(lm, requests).reshape(len(requests), -1)[:, 0] for lm in (mine, theirs))
        assert found == pytest.approx(expected, **tolerance)
    contexts = [request.args[0] for request in CHOICES]
    for context in contexts:
        asked = [number for number, other in enumerate(contexts) if other == context]
        assert found[asked].argmax() == expected[asked].argmax()


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused"])
def test_a_step_that_overflows_is_counted_and_uses_none_of_the_schedule(bare_trainer, device, tmp_path, optimizer):
    options = {"schedule": "linear", "warmup_fraction": 0.0, "max_grad_norm": 0.0, "learning_rate": 0.006}
    options["compile"] = "never"
    trainer = bare_trainer(**options, optimizer=optimizer, precision="fp32" if device.type == "cpu" else "fp16")
    if device.type == "cpu":
        trainer.accelerator.scaler = CountingScaler("cpu", init_scale=16.0)
    parameter = next(trainer.model.parameters())
    parameter.register_hook(lambda grad: grad * float("inf") if trainer.state.global_step == 2 else grad)
    weights = weights_after_steps(trainer)
    trainer.train()
    rows = logged(tmp_path, "train")
    skipped = [row["skipped_steps"] for row in rows]
    assert skipped[2] == skipped[1] + 1  # others may overflow by themselves
    taken = [step - before for step, before in enumerate([0, *skipped[:-1]])]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.006 * (1 - steps / 6) for steps in taken])
    moved = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert moved == [a == b for a, b in pairwise(skipped)]


@pytest.fixture(scope="session")
def losses(device, reference, tmp_path_factory):
    """`losses(architecture, precision)` are the first 20 and the run that made them; without a precision the CPU's."""

    @cache
    def trained(architecture, precision="", compiled="never"):
        run = tmp_path_factory.mktemp("losses")
        changes = ALONE | {
            "max_steps": 20,
            "learning_rate": 0.003,
            "precision": precision or "fp32",
            "compile": compiled,
        }
        small = {"tokens_per_step": 300, "conversations": 120, "turns": 4}  # the CPU has to read it too
        settings = reference(run, **small, **changes) if architecture == "reference" else small_settings(run, **changes)
        forked(settings, 1, CUDA_VISIBLE_DEVICES=os.environ["CUDA_VISIBLE_DEVICES"] if precision else "")
        return [row["loss"] for row in logged(run, "train")], run

    return trained


@pytest.mark.parametrize("precision", AS_ON_THE_CPU)
@pytest.mark.parametrize("architecture", ["tiny", "reference"])
def test_the_first_losses_are_those_of_the_cpu(losses, device, architecture, precision, measured, record_property):
    needs(precision, device)
    expected, _ = losses(architecture)
    found, run = losses(architecture, precision)
    assert measured(run)["precision"] == precision and len(found) == 20
    skips = [row["skipped_steps"] for row in logged(run, "train")]
    alike = skips.index(1) if 1 in skips else len(found)  # behind a skipped step the CPU is one ahead
    assert alike > 5
    worst = max(abs(a / b - 1) for a, b in zip(found[:alike], expected, strict=False))
    record_property("worst_relative_difference", round(worst, 6))
    assert worst < AS_ON_THE_CPU[precision]
    assert found[-1] < 0.9 * found[0]  # they move further than they may differ


def test_compiled_layers_lose_what_eager_ones_do(losses, measured):
    expected, _ = losses("reference", "fp32")
    found, run = losses("reference", "fp32", "always")
    assert found == pytest.approx(expected, rel=1e-4)
    measured(run)


@pytest.fixture(scope="session")
def undisturbed(device, tmp_path_factory):
    """`undisturbed(compiled, precision)` is a run of the demo's architecture."""

    @cache
    def trained(compiled="never", precision="auto"):
        run = tmp_path_factory.mktemp("undisturbed")
        forked(small_settings(run, compile=compiled, precision=precision, **USUAL), 1)
        return run

    return trained


def killed_and_resumed(run, expected, **changes):
    """The same training ends with the same bits, killed while it writes its second checkpoint."""
    settings = small_settings(run, **USUAL | changes)
    assert forked(settings, 1, FAULT="checkpoint_half_written:2:0").returncode and (run / "fault").is_file()
    assert [kept.step for kept in Run(run).checkpoints()] == [settings.checkpoint_steps]
    forked(settings, 1)
    assert result(run) == result(expected)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_killed_and_resumed_it_ends_with_the_same_bits(undisturbed, device, tmp_path, measured, precision):
    """In the kernels that a T4 takes, whatever this card is: fp32 has no flash attention, fp16 has the scaler."""
    needs(precision, device)
    killed_and_resumed(tmp_path, undisturbed("never", precision), compile="never", precision=precision)
    measured(tmp_path)


def test_killed_and_resumed_as_layers_usually_are_here(undisturbed, tmp_path, measured):
    """Compiled on a GPU."""
    killed_and_resumed(tmp_path, undisturbed("auto"), compile="auto")
    measured(tmp_path)


def test_two_processes_on_one_card_take_the_gradients_of_one(device, tmp_path, measured):
    changes = SGD | ALONE | {"max_steps": 8, "precision": "fp32"}
    moved, rows = [], []
    for world in (1, 2):
        run = tmp_path / str(world)
        forked(small_settings(run, **changes), world, "tests.gpu.over_gloo", GLOO_SOCKET_IFNAME="lo")
        moved.append(flat(ModelRef.parse("final", run).load()) - flat(ModelRef.parse("base", run).load()))
        rows.append([row[name] for row in logged(run, "train") for name in ("loss", "grad_norm")])
    assert rows[1] == pytest.approx(rows[0], rel=1e-4)
    assert (moved[1] - moved[0]).norm() < 1e-4 * moved[0].norm()
    measured(run)


def test_the_chat_streams_what_generate_writes(undisturbed, device, record_property):
    assert load("final", undisturbed()).model.device.type == device.type
    session = chat(copy.deepcopy(MODEL).to(device))
    pieces = list(session.reply("Hi! How are you today?"))
    assert len(pieces) > 1 and session.measured.new_tokens > 1
    record_property("tokens_per_second", round(session.measured.tokens_per_second, 1))
    talk_as_generate(session, "Do you have any pets?", "Why?")


def test_the_parity_gate_passes_with_a_session_on_the_device(
    undisturbed, device, tmp_path, monkeypatch, record_property
):
    run, own = undisturbed(), ModelRef.load
    monkeypatch.setattr(ModelRef, "load", lambda self: own(self).to(device))
    facts = SimpleNamespace(
        model_folder=run / "train" / "final", held_out=load_from_disk(run / "data" / "eval")["messages"]
    )
    folder = shutil.copytree(facts.model_folder, tmp_path / "published")
    ends = {name: read_json(folder / "config.json")[name] for name in ("eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", Sampling().generation_config() | ends)
    asked = SimpleNamespace(parity_conversations=50, parity_replies=8, parity_tokens=24)
    report = check_parity(facts, asked, folder)
    assert report["replies"] == 8 and report["reply_tokens"] > 8
    record_property("ties", report["ties"])


def test_full_steps_in_three_ways_and_their_memory(device, reference, tmp_path, measured, record_property):
    """The reference's steps, of 32,768 tokens in micro-batches of 8,192; on the CPU an eighth of that."""
    size = 8192 if device.type == "cuda" else 1024
    budgets = {"tokens_per_step": 4 * size, "tokens_per_microbatch": size, "max_steps": 12, "log_steps": 12}
    ways = {"not deterministic": {"deterministic": "never"}, "compiled": {"compile": "always"}, "eager": {}}
    speeds = {}
    for way, changes in ways.items():
        settings = reference(tmp_path / way, size // 12, turns=12, **ALONE | budgets | changes)
        forked(settings, 1)
        found = measured(settings.run_path)  # of the steps behind the first three: they have rows of their own
        speeds[way] = found["tokens_per_second"]
    record_property("tokens_per_second_by_way", speeds)
    record_property("determinism_costs", round(1 - speeds["eager"] / speeds["not deterministic"], 3))
    need = memory_need(settings, ModelRef.parse("base", settings.run_path).load("meta"), size, device_report())
    # torch counts tensors alone on a GPU; of a process on the CPU there is only all that it holds
    predicted = (sum(need) - (need.framework if device.type == "cuda" else 0)) / GIB
    record_property("predicted_memory_gib", round(predicted, 3))
    assert found["peak_memory_gib"] == pytest.approx(predicted, rel=0.2 if device.type == "cuda" else 0.5)
