"""Dataset, checkpoints, scaler, options, records, budget: each part of the trainer on its own."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest
import torch

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, read_jsonl
from nbutils.train import checkpoints
from nbutils.train.dataset import TokenRows
from nbutils.train.loss import IGNORED
from nbutils.train.meters import Meters
from nbutils.train.options import REFUSED, checked_options, checked_trackers
from nbutils.train.records import Records
from nbutils.train.scaler import CountingScaler
from tests.builders import data_folder


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
    found, remarks = checkpoints.newest_valid(tmp_path, identity)
    assert found == first
    assert [remark.removesuffix(" is passed over") for remark in remarks] == [
        "step-000020 has a manifest that cannot be read and",
        "step-000015 has a changed model.bin and",
        "step-000010 has 5 of 1000 bytes of model.bin and",
    ]
    checkpoints.clear_partial(tmp_path)
    checkpoints.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000015", "step-000020"]


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
def test_skipped_fp16_steps_are_counted_and_the_schedule_waits(fused):
    """With accelerate's own optimizer wrapper, as in training; the scaler is torch's, on the CPU."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.ones(3))
    scaler = CountingScaler("cpu", init_scale=2.0**4, growth_interval=1000)
    inner = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    optimizer = AcceleratedOptimizer(inner, device_placement=False, scaler=scaler)
    schedule = torch.optim.lr_scheduler.LambdaLR(inner, lambda step: 1 / (1 + step))
    taken = []
    for factor in (1.0, float("inf"), 1.0, float("nan"), 1.0):
        before = weight.detach().clone()
        scaler.scale((weight * factor).sum()).backward()
        optimizer.step()
        if not scaler.last_skipped:
            schedule.step()
        optimizer.zero_grad()
        taken.append(not torch.equal(before, weight))
    assert taken == [True, False, True, False, True]
    assert scaler.skipped_steps == 2 and schedule.last_epoch == 3 and scaler.get_scale() == 4.0
    again = CountingScaler("cpu")
    again.load_state_dict(scaler.state_dict())
    assert (again.skipped_steps, again.get_scale()) == (2, 4.0)
    # Still needed? The stock wrapper sees a skip only where the optimizer is not fused.
    assert optimizer.step_was_skipped is False  # the last step was taken


def test_options_are_checked_against_sftconfig():
    assert checked_options({"adam_beta2": 0.95}) == {"adam_beta2": 0.95}
    with pytest.raises(UserError, match="adam_beta2"):
        checked_options({"adam_beta_2": 0.95})
    for name in ("packing", "fsdp", "gradient_accumulation_steps"):
        with pytest.raises(UserError, match=f"'{name}' cannot be set here"):
            checked_options({name: True})


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
    assert gone <= {"train_sampling_strategy", "parallelism_config", "eval_packing"}, gone


def test_records_go_back_to_a_step_and_drop_half_a_line(tmp_path):
    records = Records(tmp_path, active=True)
    records.rewind(0)
    records.metric({"kind": "session", "session": 1, "step": 0})
    for step in (1, 2, 3):
        records.metric({"kind": "train", "step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert records.rewind(2) == 1
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 1, 2]
    assert records.rewind(0) == 0 and read_jsonl(tmp_path / "metrics.jsonl") == []


def test_the_budget_keeps_a_margin_for_the_slowest_pause():
    meters = Meters(lambda batch: 0.0, lambda: False)
    meters.deadline = time.time() + 60
    assert not meters.wants_to_stop()
    meters.note_pause(25.0)
    assert meters.wants_to_stop()
    assert Meters(lambda batch: 0.0, lambda: True).wants_to_stop()
