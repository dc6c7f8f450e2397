"""Dataset, checkpoints, scaler, options, records, budget: each part of the trainer on its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, read_jsonl
from nbutils.train import arguments, checkpoints
from nbutils.train import meters as meters_module
from nbutils.train.batches import BatchPlan
from nbutils.train.control import PauseRequests
from nbutils.train.dataset import TokenRows
from nbutils.train.loader import StepBatch, StepLoader
from nbutils.train.loss import IGNORED
from nbutils.train.meters import Meters, flops_of
from nbutils.train.options import ADJUSTABLE, REFUSED, checked_options, checked_trackers
from nbutils.train.records import Records
from nbutils.train.scaler import CountingScaler
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
        tensors = rows.tensors(np.array([row]))
        assert tensors["input_ids"].shape == (1, lengths[row])
        assert (tensors["labels"][0, 1:] != IGNORED).sum() == counts[row]
        assert not unsupervised_end or not (tensors["labels"] == end).any()


def test_padding_carries_no_label(data):
    rows = TokenRows.load(data / "train", "all")
    tensors = rows.tensors(np.arange(4))
    for row, length in enumerate(rows.lengths()[:4]):
        assert (tensors["labels"][row, length:] == IGNORED).all() and (tensors["input_ids"][row, length:] == 0).all()


def write_checkpoint(folder, step, identity):
    final = checkpoints.checkpoint_path(folder, step)
    partial = final.with_name(final.name + checkpoints.PARTIAL)
    partial.mkdir(parents=True)
    (partial / "model.bin").write_bytes(bytes(range(100)) * step)
    checkpoints.seal(partial, final, identity, {"step": step})
    return final


def test_the_newest_valid_checkpoint_wins_and_damage_is_passed_over(tmp_path):
    identity = {"parameters": {"seed": 1}, "data": "abc"}
    first, second, third, fourth = (write_checkpoint(tmp_path, step, identity) for step in (5, 10, 15, 20))
    (second / "model.bin").write_bytes(b"short")
    flipped = bytearray((third / "model.bin").read_bytes())
    flipped[7] ^= 1
    (third / "model.bin").write_bytes(flipped)
    (fourth / "manifest.json").write_text("{half")
    (tmp_path / f"step-000025{checkpoints.PARTIAL}").mkdir()
    found, passed_over = checkpoints.newest_valid(tmp_path, identity)
    assert found == first
    assert passed_over == {
        fourth: "has a manifest that cannot be read",
        third: "has a changed model.bin",
        second: "has 5 of 1000 bytes of model.bin",
    }
    checkpoints.clear_partial(tmp_path)
    assert not list(tmp_path.glob(f"*{checkpoints.PARTIAL}"))


def test_a_damaged_newest_checkpoint_does_not_push_out_the_next_whole_one(tmp_path):
    newest = write_checkpoint(tmp_path, 20, {})
    (newest / "model.bin").write_bytes(b"short")
    found, passed_over = checkpoints.newest_valid(tmp_path, {})
    assert found is None
    checkpoints.set_aside(passed_over)
    assert [p.name for p in tmp_path.iterdir()] == ["damaged-step-000020"]
    for step in (5, 10):
        whole = write_checkpoint(tmp_path, step, {})
        checkpoints.prune(tmp_path, kept=1)
        assert list(tmp_path.iterdir()) == [whole]


def test_damaged_checkpoints_make_way_where_room_is_short(tmp_path, monkeypatch):
    damaged = write_checkpoint(tmp_path, 20, {})
    checkpoints.set_aside([damaged])
    assert checkpoints.make_room(tmp_path, 1) is None and list(tmp_path.glob("damaged-*"))
    monkeypatch.setattr(checkpoints, "room_for", lambda folder, needed: "no room" if list(folder.iterdir()) else None)
    assert checkpoints.make_room(tmp_path, 1) is None and not list(tmp_path.iterdir())


def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path):
    write_checkpoint(tmp_path, 5, {"parameters": {"seed": 1, "learning_rate": 0.1}, "data": "abc"})
    with pytest.raises(UserError, match=r"learning_rate was 0\.1, is 0\.2"):
        checkpoints.newest_valid(tmp_path, {"parameters": {"seed": 1, "learning_rate": 0.2}, "data": "abc"})
    with pytest.raises(UserError, match="data was 'abc', is 'x'"):
        checkpoints.newest_valid(tmp_path, {"parameters": {"seed": 1, "learning_rate": 0.1}, "data": "x"})


def test_a_newer_schema_is_named(tmp_path):
    folder = write_checkpoint(tmp_path, 5, {})
    manifest = read_json(folder / "manifest.json") | {"schema": 99}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="newer smallchat"):
        checkpoints.newest_valid(tmp_path, {})


def test_no_room_is_a_sentence(tmp_path):
    assert checkpoints.room_for(tmp_path, 1) is None
    assert "MiB free" in checkpoints.room_for(tmp_path, shutil.disk_usage(tmp_path).free)


@pytest.mark.parametrize("fused", [False, True])
def test_the_scaler_counts_skipped_steps_and_keeps_the_count(fused):
    """With accelerate's own optimizer wrapper, as in training; the scaler is torch's, on the CPU."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

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
    assert taken == [True, False, True, False, True]
    assert scaler.skipped_steps == 2 and scaler.get_scale() == 4.0
    again = CountingScaler("cpu")
    again.load_state_dict(scaler.state_dict())
    assert (again.skipped_steps, again.get_scale()) == (2, 4.0)


def test_options_are_checked_against_sftconfig():
    assert checked_options({"adam_beta2": 0.95}) == {"adam_beta2": 0.95}
    assert checked_options({"adam_epsilon": "1e-7"}) == {"adam_epsilon": 1e-7}  # what YAML makes of 1e-7
    with pytest.raises(UserError, match="'adam_beta2' is 'high', but it should be a valid number"):
        checked_options({"adam_beta2": "high"})
    with pytest.raises(UserError, match="'optim' cannot be set here: use optimizer"):
        checked_options({"optim": "adamw_torch_fused"})
    with pytest.raises(UserError, match="adam_beta2"):
        checked_options({"adam_beta_2": 0.95})
    for name in ("packing", "fsdp", "gradient_accumulation_steps"):
        with pytest.raises(UserError, match=f"'{name}' cannot be set here"):
            checked_options({name: True})


def test_no_option_undoes_what_smallchat_sets(tmp_path, monkeypatch):
    made: dict[str, object] = {}
    monkeypatch.setattr(arguments, "SFTConfig", lambda **options: made.update(options))
    for changes in ({}, {"max_steps": 0}):
        arguments.trainer_arguments(small_settings(tmp_path, **changes), tmp_path)
    assert {"optim", "max_steps", "num_train_epochs"} < made.keys()
    assert made.keys() - REFUSED.keys() <= set(ADJUSTABLE)


def test_what_sftconfig_itself_refuses_is_a_sentence(tmp_path):
    settings = small_settings(tmp_path, trainer_options={"hub_strategy": "sometimes"})
    with pytest.raises(UserError, match=r"SFTConfig does not take \{'hub_strategy': 'sometimes'\}|'hub_strategy' is"):
        arguments.trainer_arguments(settings, tmp_path)


def test_trackers_are_checked_by_name_and_package(monkeypatch):
    from transformers import integrations

    assert checked_trackers([]) == []
    with pytest.raises(UserError, match="Did you mean 'tensorboard'"):
        checked_trackers(["tensorbord"])
    monkeypatch.setattr(integrations, "get_available_reporting_integrations", lambda: [])
    with pytest.raises(UserError, match="`pip install trackio` adds it"):
        checked_trackers(["trackio"])


def test_every_refused_option_exists_in_this_trl():
    from trl import SFTConfig

    gone = {name for name in REFUSED if name not in SFTConfig.__dataclass_fields__}
    newer = {"train_sampling_strategy", "dataloader_multiprocessing_context", "dataloader_in_order"}
    assert gone <= newer, gone  # transformers 5.0 has none of these yet


def test_records_go_back_to_a_step_and_drop_half_a_line(tmp_path):
    records = Records(tmp_path, active=True)
    records.rewind(0)
    records.metric({"kind": "session", "session": 1, "step": 0})
    for step in (1, 2, 3):
        records.metric({"kind": "train", "step": step})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write('{"kind": "train", "words": "caf\u00e9'.encode()[:-1])  # cut within a character
    assert records.rewind(2) == 1
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 1, 2]
    assert records.rewind(0) == 0 and read_jsonl(tmp_path / "metrics.jsonl") == []


def meters_at(monkeypatch, clock: list[float]) -> Meters:
    monkeypatch.setattr(meters_module.time, "perf_counter", lambda: clock[0])
    return Meters(lambda batch: 0.0, lambda: False)


def test_a_row_that_two_sessions_share_has_the_time_of_both(tmp_path, monkeypatch):
    clock = [100.0]
    batch = StepBatch([], [], supervised_tokens=10, tokens=60, padded_tokens=80, attended=0)
    first = meters_at(monkeypatch, clock)
    first.restart_clock()
    clock[0] += 3.0
    first.count_step(batch, 1.0, 1.0)
    first.add("forward_backward", 2.5)
    first.end_step()
    clock[0] += 50.0  # the checkpoint being written is no part of it
    first.save(tmp_path)
    clock[0] = 9000.0
    second = meters_at(monkeypatch, clock)
    second.load(tmp_path)
    clock[0] += 20.0  # start-up
    second.restart_clock()
    clock[0] += 1.0
    second.count_step(batch, 1.0, 1.0)
    second.add("forward_backward", 0.5)
    second.end_step()
    row = second.row(step=2, epoch=0.1)
    assert row["tokens_per_second"] == pytest.approx(120 / 4.0) and row["elapsed"] == 4.0
    assert row["seconds"]["forward_backward"] == 3.0 and row["seconds"]["optimizer"] == 1.0
    assert second.slowest_step == 3.0  # the budget's margin remembers the slower session


def test_the_evaluation_before_the_first_step_is_no_part_of_its_row(monkeypatch):
    clock = [100.0]
    meters = meters_at(monkeypatch, clock)
    meters.add("evaluation", 7.0)
    clock[0] += 7.0
    meters.restart_clock()
    clock[0] += 2.0
    meters.count_step(StepBatch([], [], supervised_tokens=10, tokens=60, padded_tokens=80, attended=0), 1.0, 1.0)
    row = meters.row(step=1, epoch=0.1)
    assert row["tokens_per_second"] == 30.0 and row["seconds"]["evaluation"] == 0.0


def test_the_budget_remembers_the_slowest_pause_of_earlier_sessions(tmp_path):
    first = Meters(lambda batch: 0.0, lambda: False)
    first.note_pause(25.0)
    first.save(tmp_path)
    second = Meters(lambda batch: 0.0, lambda: False)
    second.load(tmp_path)
    second.deadline = time.time() + 60
    assert second.wants_to_stop()


def test_every_rank_counts_the_operations_of_all(data):
    rows = TokenRows.load(data / "train", "all")
    plan = BatchPlan(rows.lengths(), 600, 150, 1)
    count = flops_of(parameters=1000, head=500, layers=2, hidden=16)
    step = plan.steps(0)[0]
    ranks = [count(StepLoader(rows, plan, rank, 2).step_batch(step)) for rank in (0, 1)]
    microbatches = [batch for rank in plan.deal(step, 2) for batch in rank]
    attention = sum(6 * 2 * 16 * len(batch) * int(plan.lengths[batch].max()) ** 2 for batch in microbatches)
    tokens, supervised = int(plan.lengths[step].sum()), int(rows.supervised_counts()[step].sum())
    assert ranks == [6 * (1000 * tokens + 500 * supervised) + attention] * 2


def test_the_budget_keeps_a_margin_for_the_slowest_pause():
    meters = Meters(lambda batch: 0.0, lambda: False)
    meters.deadline = time.time() + 60
    assert not meters.wants_to_stop()
    meters.note_pause(25.0)
    assert meters.wants_to_stop()
    assert Meters(lambda batch: 0.0, lambda: True).wants_to_stop()


def test_signals_ask_for_a_pause_and_nohup_is_respected(tmp_path):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        requests = PauseRequests(tmp_path)
        requests.listen()
        os.kill(os.getpid(), signal.SIGHUP)
        assert not requests()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        requests.listen()
        os.kill(os.getpid(), signal.SIGHUP)
        assert requests()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
