"""`python -m nbutils tune`: the choice among made-up trials, what is written, and one real trial."""

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

MEMORY = UserError("Training ended: rank 0 failed with status 1; the last lines of worker.log:\ncuda: OutOfMemory")


def speed(settings):
    """The share of this machine's speed that these settings reach."""
    if settings.tokens_per_microbatch == 75:
        raise MEMORY
    return (1.2 if settings.processes == 1 else 1.0) * {300: 1.0, 600: 1.1, 150: 0.99}[settings.tokens_per_microbatch]


@pytest.fixture
def tuned(tmp_path, monkeypatch, capsys):
    """Runs the command with trials of a minute that are made up; its status, what it said, and the trials' settings.

    `interrupted` is after how many trials somebody presses Ctrl-C.
    """
    clock, trials = [0.0], []
    run, profile = tmp_path / "run", tmp_path / "mine.yaml"
    settings = small_settings(run)
    profile.write_text("".join(f"{name}: {value!r}\n" for name, value in settings.model_dump().items() if value != ""))

    def go(*options, interrupted=100):
        def trial(asked):
            if len(trials) == interrupted:
                raise KeyboardInterrupt
            trials.append(asked)
            clock[0] += 60
            drift = 1000 + len(trials) % 4  # too little to hide a twentieth, and more than a hundredth is not told
            shaken = drift * (1 + 0.02 * (len(trials) % 2)) * speed(asked)
            return {"tokens_per_second": shaken, "peak_memory_gib": 0.5, "loss": asked.tokens_per_microbatch / 7}

        monkeypatch.setattr(tune, "trial", trial)
        monkeypatch.setattr(tune, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        trials.clear()
        status = main(["tune", str(profile), *options])
        assert not (run / ".tune").exists()
        return status, capsys.readouterr().out, list(trials)

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(tune, "Runner", lambda *_: SimpleNamespace(go=lambda: 0))  # the rows are there
    go.run, go.profile, go.written = run, profile, tmp_path / "mine.tuned.yaml"
    return go


def test_the_fastest_together_are_written_and_forecast_and_a_failure_is_a_row(tuned, capsys):
    status, said, trials = tuned()
    assert status == 0 and "OutOfMemory" in said and "not told apart" in said
    assert sum(each.tokens_per_microbatch == 75 for each in trials) == 0 < len(trials)
    kept, found = read_profile(tuned.profile), read_profile(tuned.written)
    changed = {name: each.value for name, each in found.items() if each.value != kept[name].value}
    assert changed == {"processes": 1, "tokens_per_microbatch": 600} and found.keys() == kept.keys()
    bits = {row["setting"]: row.get("bits") for row in read_json(tuned.run / "tune.json")["tried"]}
    assert bits["processes=1"] == "same" and bits["tokens_per_microbatch=600"] == "other"
    assert tuned()[0] == 0  # over its own
    for profile in (tuned.profile, tuned.written):
        main(["doctor", str(profile)])
        assert "training steps take about" in capsys.readouterr().out
    main(["doctor", str(tuned.profile), "-p", "optimizer=sgd"])  # of which nothing is known
    assert "training steps take about" not in capsys.readouterr().out


def test_no_trial_is_begun_that_would_end_too_late(tuned):
    status, said, trials = tuned("--minutes", "3.5")
    assert status == 0 and len(trials) == 3 and "not tried" in said and not tuned.written.exists()


def test_what_is_known_when_it_is_interrupted_counts(tuned):
    _, said, _ = tuned(interrupted=9)
    assert "processes=1" in tuned.written.read_text() and "as it is" in said


def test_nothing_is_written_where_nothing_is_faster_or_nothing_works(tuned, monkeypatch):
    monkeypatch.setattr("tests.sweep.test_tune.speed", lambda settings: 1.0)
    assert tuned()[0] == 0 and not tuned.written.exists()

    def fails(_):
        raise MEMORY

    monkeypatch.setattr("tests.sweep.test_tune.speed", fails)
    status, _, trials = tuned()
    assert status == 1 and not trials and not tuned.written.exists()


def test_bad_input_is_one_sentence_before_the_first_trial(tuned, refused):
    tuned.written.write_text("mine: 1\n")
    assert "has written it" in refused("tune", tuned.profile)
    assert "learning_rat" in refused("tune", tuned.profile, "-p", "learning_rat=1")
    assert tuned.written.read_text() == "mine: 1\n"


@pytest.mark.parametrize("gpus,cores,expected", [
    ((), 2, {"processes=1", "tokens_per_microbatch=600"}),
    ((), 12, {"processes=8", "tokens_per_microbatch=75"}),
    ((T4, T4), 4, {"optimizer=adamw_torch_fused", "trainer_options={'ddp_bucket_cap_mb': 100}"}),
])  # fmt: skip
def test_what_is_tried_is_what_the_machine_has_a_choice_of(tmp_path, gpus, cores, expected):
    own, *others = map(
        str, alternatives(small_settings(tmp_path, tokens_per_step=1200, optimizer="adamw_torch"), gpus, cores)
    )
    assert own == "as it is" and expected <= {*others} and bool(gpus) is not any("processes" in each for each in others)


@pytest.mark.soak
def test_real_trials_find_the_same_bits_again_and_a_setting_that_cannot_be(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "ROUNDS", 2)
    own, other, wrong = tried = [Setting({}), Setting({"processes": 1}), Setting({"precision": "fp16"})]
    before = {path: path.stat().st_mtime_ns for path in small_settings(tmp_path).run_path.rglob("*")}
    assert len(list(tune.tune(small_settings(tmp_path), tried, 0))) == 5
    assert own.row(own)["bits"] == "same" and all(each > 0 for each in (*own.speeds, *other.speeds))
    assert "precision is fp16" in wrong.row(own)["remark"]
    assert before.keys() == {*tmp_path.rglob("*")}, "nothing is left"
