"""Dataset, checkpoints, scaler, options, records, budget: each part of the trainer on its own."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from transformers import LlamaConfig, LlamaForCausalLM, integrations

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, read_jsonl, write_json
from nbutils.core.run import checkpoints
from nbutils.core.run.checkpoints import Checkpoint
from nbutils.train import arguments, control
from nbutils.train.batches import BatchPlan, StepBatch, StepLoader
from nbutils.train.control import Budget, Counters, Records, flops_of, pause_requests
from nbutils.train.dataset import TokenRows
from nbutils.train.loss import IGNORED
from nbutils.train.settings import TrainerOptions, TrainSettings, checked_trackers
from nbutils.train.trainer import CountingScaler
from tests.builders import data_folder
from tests.train.runs import small_settings


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_folder(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("supervise", ["assistant", "all"])
@pytest.mark.parametrize("unsupervised_end", [False, True])
def test_counts_agree_with_tensors(data, supervise, unsupervised_end):
    end = 510 if unsupervised_end else None
    rows = TokenRows.load(data / "train", supervise, end)
    counts, lengths = rows.supervised_counts(), rows.lengths()
    assert len(counts) == len(lengths) == len(rows) > 10
    for row in range(len(rows)):
        ids, labels = rows.tensors(np.array([row]))
        assert ids.shape == (1, lengths[row])
        assert (labels[0, 1:] != IGNORED).sum() == counts[row]
        assert not unsupervised_end or not (labels == end).any()


def test_padding_carries_no_label(data):
    rows = TokenRows.load(data / "train", "all")
    ids, labels = rows.tensors(np.arange(4))
    for row, length in enumerate(rows.lengths()[:4]):
        assert (labels[row, length:] == IGNORED).all() and (ids[row, length:] == 0).all()


def write_checkpoint(folder, step, identity=None):
    made = Checkpoint.at(folder, step)
    made.partial.mkdir(parents=True)
    (made.partial / "model.bin").write_bytes(bytes(range(100)) * step)
    made.seal(identity or {}, {"step": step})
    return made


def test_the_newest_valid_checkpoint_wins_and_damage_is_passed_over(tmp_path):
    first, second, third, fourth = (write_checkpoint(tmp_path, step) for step in (5, 10, 15, 20))
    (second.path / "model.bin").write_bytes(b"short")
    flipped = bytearray((third.path / "model.bin").read_bytes())
    flipped[7] ^= 1
    (third.path / "model.bin").write_bytes(flipped)
    (fourth.path / "manifest.json").write_text("{half")
    Checkpoint.at(tmp_path, 25).partial.mkdir()
    found, passed_over = checkpoints.newest_whole(tmp_path)
    assert found == first and passed_over == {
        fourth: "has a manifest that cannot be read",
        third: "has a changed model.bin (1500 of 1500 bytes)",
        second: "has a changed model.bin (5 of 1000 bytes)",
    }
    assert checkpoints.half_written(tmp_path) == [Checkpoint.at(tmp_path, 25).partial]


def test_a_damaged_newest_checkpoint_does_not_push_out_the_next_whole_one(tmp_path):
    newest = write_checkpoint(tmp_path, 20)
    newest.set_aside()
    assert checkpoints.newest_whole(tmp_path) == (None, {})
    assert [p.name for p in tmp_path.iterdir()] == ["damaged-step-000020.partial"]
    for step in (5, 10):
        whole = write_checkpoint(tmp_path, step)
        checkpoints.prune(tmp_path, kept=1)
        assert list(tmp_path.iterdir()) == [whole.path]


def test_a_checkpoint_of_other_settings_or_of_a_newer_version_is_refused_by_name(tmp_path):
    own = {"parameters": {"seed": 1, "learning_rate": 0.1}, "data": "abc"}
    made = write_checkpoint(tmp_path, 5, own)
    for change, words in (
        ({"parameters": {"seed": 1, "learning_rate": 0.2}}, r"learning_rate \(0\.1 → 0\.2\)"),
        ({"data": "x"}, r"data \('abc' → 'x'\)"),
    ):
        with pytest.raises(UserError, match=words):
            checkpoints.check_identity(made, own | change)
    write_json(made.path / "manifest.json", read_json(made.path / "manifest.json") | {"schema": 99})
    with pytest.raises(UserError, match="newer smallchat"):
        checkpoints.newest_whole(tmp_path)


@pytest.mark.parametrize("fused", [False, True])
def test_the_scaler_counts_skipped_steps_and_keeps_the_count(fused):
    """With accelerate's own optimizer wrapper, as in training; the scaler is torch's, on the CPU.

    Still needed? Of a fused AdamW accelerate sees no skip, so the stock schedule would not wait: if it does now, fused
    AdamW may be allowed with fp16 (`OPTIMIZERS`).
    """
    Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.ones(3))
    scaler = CountingScaler("cpu", init_scale=2.0**4, growth_interval=1000)
    inner = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    optimizer = AcceleratedOptimizer(inner, device_placement=False, scaler=scaler)
    taken = []
    for factor in (1.0, float("inf"), 1.0, float("nan"), 1.0):
        before = weight.detach().clone()
        scaler.scale((weight * factor).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(not torch.equal(before, weight))
        assert optimizer.step_was_skipped is (not fused and not taken[-1])
    assert taken == [True, False, True, False, True]
    assert scaler.skipped_steps == 2 and scaler.get_scale() == 4.0
    again = CountingScaler("cpu")
    again.load_state_dict(scaler.state_dict())
    assert (again.skipped_steps, again.get_scale()) == (2, 4.0)


def test_trainer_options_are_coerced_and_others_refused_by_name(tmp_path):
    given = small_settings(tmp_path).model_dump()

    def checked(options: dict) -> dict:
        return TrainSettings.checked(given | {"trainer_options": options}).trainer_options

    assert checked({"adam_beta2": 0.95}) == {"adam_beta2": 0.95}
    assert checked({"adam_epsilon": "1e-7"}) == {"adam_epsilon": 1e-7}  # what YAML makes of 1e-7
    with pytest.raises(UserError, match=r"'trainer_options\.adam_beta2' is 'high': input should be a valid number"):
        checked({"adam_beta2": "high"})
    for name in ("packing", "fsdp", "optim", "include_num_input_tokens_seen", "adam_beta_2", "from_a_later_release"):
        with pytest.raises(UserError, match=f"'trainer_options' .*'{name}' cannot be set here, only adam_beta1, adam"):
            checked({name: True})


def test_every_option_is_one_of_sftconfig_that_smallchat_does_not_set(tmp_path, monkeypatch):
    made: dict[str, object] = {}
    options = TrainerOptions.__annotations__.keys()
    monkeypatch.setattr(arguments, "Arguments", lambda **options: made.update(options))
    arguments.trainer_arguments(small_settings(tmp_path), tmp_path)
    assert {"optim", "max_steps", "num_train_epochs"} < made.keys()
    assert made.keys() & options <= {arguments.CHECKPOINTING}
    newer = {"activation_checkpointing", "project"}
    assert options - arguments.SFTConfig.__dataclass_fields__.keys() <= newer  # not all in transformers 5.0


def test_trackers_are_checked_by_name_and_package(monkeypatch):
    assert checked_trackers([]) == []
    monkeypatch.setattr(integrations, "get_available_reporting_integrations", lambda: ["wandb"])
    assert checked_trackers(["wandb"]) == ["wandb"]
    with pytest.raises(UserError, match="no tracker trackio is installed \\(wandb is"):
        checked_trackers(["trackio", "wandb"])


def test_records_go_back_to_a_step_and_drop_half_a_line(tmp_path):
    writer = Records(tmp_path, active=True)
    writer.rewind(0)
    writer.add("metric", {"kind": "session", "session": 1, "step": 0})
    for step in (1, 2, 3):
        writer.add("metric", {"kind": "train", "step": step})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write('{"kind": "train", "words": "caf\u00e9'.encode()[:-1])  # cut within a character
    writer.rewind(2)
    assert writer.session == 2
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 1, 2]
    again = Records(tmp_path, active=True)
    again.rewind(0)
    assert again.session == 1 and read_jsonl(tmp_path / "metrics.jsonl") == []


def step_batch() -> StepBatch:
    return StepBatch([], [], supervised_tokens=10, tokens=60, padded_tokens=80, attended=0)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time that counters see, to be moved by hand."""
    now = [100.0]
    monkeypatch.setattr(control.time, "perf_counter", lambda: now[0])
    return now


def counted(counters: Counters, clock: list[float], seconds: float, working: float) -> Counters:
    """A step of so many seconds, so many of them in forward and backward."""
    counters.start_clock()
    clock[0] += seconds
    counters.count_step(step_batch(), 1.0, 1.0, 0.0)
    counters.add("forward_backward", working)
    assert counters.end_step() == seconds
    return counters


def test_a_row_that_two_sessions_share_has_the_time_of_both(tmp_path, clock):
    first = counted(Counters(), clock, 3.0, 2.5)
    clock[0] += 50.0  # the checkpoint being written is no part of it
    first.save(tmp_path, slowest={"step": 3.0})
    second = Counters()
    assert second.load(tmp_path)["slowest"] == {"step": 3.0}
    clock[0] += 20.0  # start-up
    row = counted(second, clock, 1.0, 0.5).row()
    assert row["tokens_per_second"] == pytest.approx(120 / 4.0) and row["elapsed"] == 4.0
    assert row["seconds"]["forward_backward"] == 3.0 and row["seconds"]["optimizer"] == 1.0


def test_the_evaluation_before_the_first_step_is_no_part_of_its_row(clock):
    counters = Counters()
    counters.add("evaluation", 7.0)
    clock[0] += 7.0
    counters.begin_row()
    row = counted(counters, clock, 2.0, 0.0).row()
    assert row["tokens_per_second"] == 30.0 and row["seconds"]["evaluation"] == 0.0


def test_every_rank_counts_the_operations_of_all(data):
    rows = TokenRows.load(data / "train", "all")
    plan = BatchPlan(rows.lengths(), 600, 150, 1)
    config = LlamaConfig(vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=2, tie_word_embeddings=False)  # fmt: skip
    model = LlamaForCausalLM(config)
    step = plan.steps(0)[0]
    ranks = [flops_of(model, StepLoader(rows, plan, rank, 2).step_batch(step)) for rank in (0, 1)]
    microbatches = [batch for rank in plan.deal(step, 2) for batch in rank]
    attention = sum(6 * 2 * 16 * len(batch) * int(plan.lengths[batch].max()) ** 2 for batch in microbatches)
    tokens, supervised = int(plan.lengths[step].sum()), int(rows.supervised_counts()[step].sum())
    body = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name and "lm_head" not in name)
    assert ranks == [6 * (body * tokens + 1600 * supervised) + attention] * 2


def test_the_budget_keeps_a_margin_for_the_slowest_pause(monkeypatch):
    monkeypatch.setenv("NBUTILS_STARTED", str(time.time() - 60))
    budget = Budget(lambda: False, minutes=2.0)
    assert not budget.is_spent()
    budget.note("pause", 25.0)
    assert budget.is_spent()
    assert Budget(lambda: True).is_spent() and not Budget(lambda: False).is_spent()


def test_signals_ask_for_a_pause_and_nohup_is_respected(tmp_path):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        requests = pause_requests(tmp_path)
        os.kill(os.getpid(), signal.SIGHUP)
        assert not requests()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        requests = pause_requests(tmp_path)
        os.kill(os.getpid(), signal.SIGHUP)
        assert requests()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
