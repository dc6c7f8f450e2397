"""`python -m nbutils tune`: the choice among made-up trials, what is written, and real trials."""

import os
from types import SimpleNamespace

import pytest

from nbutils.cli import main
from nbutils.core.errors import UserError
from nbutils.core.files import read_json
from nbutils.pipeline.parameters import read_profile
from nbutils.sweep import tune
from nbutils.sweep.tune import Setting, alternatives
from tests.train.runs import T4, small_settings

MICROBATCHES = {300: 1.0, 600: 1.1, 150: 0.99}
"""The share of this machine's speed that each reaches; with others its memory does not suffice."""


@pytest.fixture
def tuned(tmp_path, monkeypatch, capsys):
    """Runs the command with made-up trials of a minute; its status, what it said, and the trials' settings."""
    run, profile = tmp_path / "run", tmp_path / "mine.yaml"
    settings = small_settings(run, tokens_per_step=1200)
    profile.write_text("".join(f"{name}: {value!r}\n" for name, value in settings.model_dump().items() if value != ""))

    def go(*options, shares=MICROBATCHES, interrupted=100):
        trials = []

        def trial(asked):
            if len(trials) == interrupted:
                raise KeyboardInterrupt
            trials.append(asked)
            if asked.tokens_per_microbatch not in shares:
                raise UserError("Training ended: rank 0 failed; the last lines of worker.log:\nout of memory")
            share = shares[asked.tokens_per_microbatch] * (
                1.2 if asked.processes == 1 and shares is MICROBATCHES else 1
            )
            noise = 1 + 0.02 * (len(trials) % 2)
            speed = {"tokens_per_second": 1000 * share * noise}
            return speed | {"peak_memory_gib": 0.5, "loss": 1 / share, "compiled": False}

        monkeypatch.setattr(tune, "trial", trial)
        monkeypatch.setattr(tune, "time", SimpleNamespace(monotonic=lambda: 60.0 * len(trials)))
        status = main(["tune", str(profile), *options])
        assert not (run / ".tune").exists()
        return status, capsys.readouterr().out, trials

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(tune, "go", lambda *_: 0)  # the rows are there
    go.run, go.profile, go.written = run, profile, tmp_path / "mine.tuned.yaml"
    return go


def test_the_fastest_together_are_written_and_forecast_and_a_failure_is_a_row(tuned, capsys):
    status, said, trials = tuned()
    assert status == 0 and "out of memory" in said and "not told apart" in said
    assert [each.tokens_per_microbatch for each in trials].count(75) == 1
    kept, found = (
        {n: given.value for n, given in read_profile(file).items()} for file in (tuned.profile, tuned.written)
    )
    assert found == kept | {"processes": 1, "tokens_per_microbatch": 600}
    rows = read_json(tuned.run / "tune.json")["tried"]
    assert [row.get("bits") for row in rows[:4]] == ["same", "other", "other", "other"]
    assert tuned()[0] == 0  # over its own
    for options, told in (
        ([tuned.profile], True),
        ([tuned.written], True),
        ([tuned.profile, "-poptimizer=sgd"], False),
    ):
        main(["doctor", *map(str, options)])
        assert ("training steps take about" in capsys.readouterr().out) is told


def test_a_microbatch_of_0_tokens_is_tried_as_what_it_comes_to(tuned):
    *_, trials = tuned("-ptokens_per_microbatch=0", interrupted=1)
    assert trials[0].tokens_per_microbatch > 0


def test_no_trial_is_begun_that_would_end_too_late_and_what_is_known_when_it_is_interrupted_counts(tuned):
    _, said, trials = tuned("--minutes", "3.5")
    assert len(trials) == 3 and "not tried" in said and not tuned.written.exists()
    tuned(interrupted=9)
    assert "processes: 1\n" in tuned.written.read_text()
    found = read_json(tuned.run / "tune.json")
    assert tuned(interrupted=0)[0] == 1 and read_json(tuned.run / "tune.json") == found


def test_where_only_others_work_they_are_written(tuned):
    assert tuned(shares={600: 1.0})[0] == 0 and "tokens_per_microbatch: 600\n" in tuned.written.read_text()
    assert read_json(tuned.run / "tune.json")["fastest"]["against_own"] == "as it is fails"


@pytest.mark.parametrize("shares", [{300: 1.0, 600: 1.0, 150: 1.0}, {}])
def test_nothing_is_written_where_nothing_is_faster_or_nothing_works(tuned, shares):
    assert tuned(shares=shares)[0] == (not shares) and not tuned.written.exists()


def test_bad_input_is_one_sentence_before_the_first_trial(tuned, refused):
    tuned.written.write_text("mine: 1\n")
    assert "not as `tune` has written it" in refused("tune", tuned.profile)
    assert "learning_rat" in refused("tune", tuned.profile, "-p", "learning_rat=1")
    assert tuned.written.read_text() == "mine: 1\n"


def test_what_is_tried_is_what_the_machine_has_a_choice_of(tmp_path):
    settings = small_settings(tmp_path, optimizer="adamw_torch")
    cpu, gpus = ({*map(str, alternatives(settings, gpus, 12))} for gpus in ((), (T4, T4)))
    assert {"processes=8", "tokens_per_microbatch=37", "optimizer=adamw_torch_fused"} <= cpu
    assert "trainer_options={'ddp_bucket_cap_mb': 100}" in gpus - cpu and "processes=8" in cpu - gpus


@pytest.mark.soak
def test_real_trials_find_the_same_bits_again_and_a_setting_that_cannot_be(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "ROUNDS", 2)
    settings = small_settings(tmp_path)
    own, other, wrong = tried = [Setting({}), Setting({"processes": 1}), Setting({"precision": "fp16"})]
    assert len(list(tune.tune(settings, tried, 0))) == 5
    assert own.row(own)["bits"] == "same" and all(speed > 0 for speed in (*own.speeds, *other.speeds))
    assert "precision is fp16" in wrong.row(own)["remark"]
    assert [each.name for each in tmp_path.iterdir()] == ["data"]  # nothing is left
