"""Earlier work under other settings, sessions that fail, a whole pipeline short of time, options: without kernels."""

from __future__ import annotations

import argparse
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from transformers import TrainerControl, TrainerState

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, sha256_of_json
from nbutils.core.run.decide import inspect
from nbutils.core.run.key import key_parts
from nbutils.core.run.layout import Run
from nbutils.core.stages import spec
from nbutils.kaggle.carry_over import best, continues
from nbutils.kaggle.command import add_arguments, bundle_of
from nbutils.kaggle.notebook_session import Session, too_late
from nbutils.kaggle.packages import WHOLE
from nbutils.kaggle.start import Bundle, Environment
from nbutils.pipeline.parameters import plan, settings_of
from nbutils.train.control import StepControl
from tests.kaggle.made_stages import stage_at
from tests.kaggle.simulated import SMALL

NAMES = {"run_dir": "runs/mine", "learning_rate": 0.003}
TRAIN = spec("train")


def trained(place: Path, status: str, seconds: float = 5.0, **changes: object) -> Path:
    """The training of an earlier session, as it would be in the run folder, with these settings but for `changes`."""
    settings = settings_of(TRAIN, NAMES | changes)
    parts = key_parts(TRAIN, settings)
    steps = [] if status == "done" else [10]
    return stage_at(settings.run_path, status, *steps, key=sha256_of_json(parts), parts=parts, work_seconds=seconds)


def kept(folder: Path, stale: str) -> bool:
    found = best([folder.parent], "train", {})
    assert found is not None
    return continues(found, inspect(TRAIN, settings_of(TRAIN, NAMES)), stale, in_pipeline=False)


@pytest.mark.parametrize(
    "status,seconds,rate,stale,stays",
    [
        *((status, 5000, 0.003, "", True) for status in ("done", "paused", "running")),
        ("done", 5000, 0.1, "accept", True),
        ("done", 5000, 0.1, "force", False),
        ("done", 5, 0.1, "", False),  # seconds of work
    ],
)
def test_what_fits_stays_and_what_does_not_as_the_bundle_says(place, status, seconds, rate, stale, stays):
    folder = trained(place, status, seconds, learning_rate=rate)
    assert kept(folder, stale) is stays is folder.exists()
    assert not stays or kept(folder, "")  # accepted once, it fits


@pytest.mark.parametrize("status,words", [("paused", r"step 10.*"), ("done", r".*--accept.*")])
def test_long_or_unfinished_work_of_other_settings_stops_the_session(place, status, words):
    """Before anything is run."""
    folder = trained(place, status, 5000, learning_rate=0.1)
    shutil.move(folder.parent, place / "input" / "it" / "mine")
    with pytest.raises(UserError, match=rf"{words}--force") as raised:
        session(place).resume(NAMES)
    assert "learning_rate (0.1 → 0.003)" in str(raised.value)
    assert ("--accept" in str(raised.value)) is (status == "done")  # other checkpoints cannot be continued
    assert not (folder.parent / "kaggle.jsonl").exists()


# A session


def session(place: Path, stage: str = "train", stale: str = "") -> Session:
    made = Session(Bundle("me", "mine", "mine.yaml", stage, stale=stale), Environment(place, "Batch", False, ()))
    made.run, made.names = Run(place / "working" / "runs" / "mine"), NAMES
    return made


@pytest.mark.parametrize("stage", ["train", WHOLE])
def test_a_failure_is_published_as_one_though_the_brought_record_says_paused(place, capsys, stage):
    trained(place, "paused")
    made = session(place, stage)
    assert made.keep_output(UserError("no room")) is True
    for record in (made.run.record("train"), read_json(made.run.path / "session.json")):
        assert record and (record["status"], record["error"]) == ("failed", "no room")
    assert "\033[1;31m" in capsys.readouterr().out


@pytest.mark.parametrize("trouble", ["full disk", "damaged record"])
def test_a_failure_that_cannot_be_marked_costs_no_output_either(place, capsys, monkeypatch, trouble):
    folder = trained(place, "paused")
    if trouble == "full disk":
        full = Mock(side_effect=OSError(28, "No space left on device"))
        monkeypatch.setattr("nbutils.core.run.record.write_text", full)
    else:
        (folder / "stage.json").write_text("{")
    assert session(place).keep_output(UserError("it broke")) is True
    said = capsys.readouterr().out
    assert "Note: " in said and "what it made so far is kept" in said


def test_a_pipeline_that_fails_ends_the_session_with_its_last_sentence(place):
    with pytest.raises(UserError, match=r"The pipeline ended with status 1: .*learning_rate"):
        session(place, WHOLE).run_all(NAMES | {"learning_rate": -1})


@pytest.mark.parametrize("status,steps", [("done", []), ("paused", [10_000])])
def test_the_mirror_is_asked_where_what_is_attached_does_not_fit(place, tmp_path_factory, status, steps):
    """`--force` after the data changed: the new run, in the mirror alone, is not lost for the old one's sake."""
    held = tmp_path_factory.mktemp("held")
    shutil.move(trained(place, "running").parent, held / "mine")
    parts = key_parts(TRAIN, settings_of(TRAIN, NAMES)) | {"upstream": {"data/train/x": "old"}}
    stage_at(place / "input" / "mine", status, *steps, parts=parts, key=sha256_of_json(parts))
    made = session(place, stale="force")
    made.mirror = Mock(fetch=Mock(return_value=held))
    made.bring_earlier()
    assert made.continued is not None and made.continued.step == 10
    made.mirror.fetch.assert_called_with("mine", 0)


@pytest.mark.parametrize(
    "stage,waits,status", [("train", "", "done"), (WHOLE, "", "running"), (WHOLE, "evaluate waits.", "paused")]
)
def test_the_end_of_a_session_is_noted(place, stage, waits, status):
    trained(place, "done")
    made = session(place, stage)
    made.waits = waits
    made.close()
    assert read_json(made.run.path / "session.json")["status"] == status


def test_the_evaluation_waits_where_little_of_the_budget_is_left(monkeypatch):
    for used, waits in ((59, False), (61, True)):
        monkeypatch.setenv("NBUTILS_STARTED", str(time.time() - 60 * used))
        assert bool(too_late(100)) is waits and too_late(0) == ""


@pytest.mark.parametrize("step,pauses", [(3, False), (4, True), (8, False)])
def test_a_rehearsal_pauses_after_its_steps_however_fast_the_machine(step, pauses):
    settings = SimpleNamespace(pause_after_steps=3, log_steps=1, eval_steps=0, checkpoint_steps=0)
    counters, budget = SimpleNamespace(end_step=lambda: 1.0), SimpleNamespace(note=lambda *_: None)
    job = SimpleNamespace(settings=settings, counters=counters, budget=budget, loader=SimpleNamespace(first_step=1))
    control = StepControl(SimpleNamespace(job=job, stopping=False))  # type: ignore[arg-type]
    flags = TrainerControl()
    control.on_step_end(None, TrainerState(global_step=step, max_steps=8), flags)  # type: ignore[arg-type]
    assert flags.should_save is pauses and flags.should_training_stop is (pauses or step == 8)


# Options


def test_a_profile_says_what_its_bundles_may_use_and_the_command_line_overrides_it(tmp_path):
    profile = tmp_path / "mine.yaml"
    profile.write_text(SMALL.read_text() + "internet: false\ncheckpoint_mirror: me/mirror\nmirror_minutes: 5\n")

    def given(*words: object) -> Bundle:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return bundle_of(parser.parse_args(["bundle", "--out", "x", "--owner", "someone", *map(str, words)]))

    def asked(*words: object) -> tuple:
        found = given(*words)
        return found.internet, found.checkpoint_mirror, found.mirror_minutes, found.stale

    assert asked(profile) == (False, "me/mirror", 5.0, "")
    words = ("--mirror", "", "-p", "mirror_minutes=7", "-p", "internet=true", "--force")
    assert asked(profile, *words) == (True, "", 7.0, "force")
    assert asked(SMALL) == (True, "", 30.0, "") and asked(SMALL, "--offline", "--accept") == (False, "", 30.0, "accept")
    assert given(SMALL, "-p", "datasets=[a b]").recipe == "tests/kaggle/small.yaml -p 'datasets=[a b]'"
    assert given(profile).recipe == "mine.yaml", "no place on this machine goes into a notebook"
    assert len(plan(profile, []).stages) == 6  # `run` knows the names and passes over them


def test_profiles_that_kaggle_would_take_for_one_have_addresses_of_their_own():
    alike = [*("a-profile-of-a-very-long-name-1", "a-profile-of-a-very-long-name-2"), "модель", "модели", "modell-ä"]
    alike += ["modell-"]
    for name in ("data", "evaluate", WHOLE):
        addresses = [Bundle("me", profile, "", name).slug for profile in alike]
        assert len(set(addresses)) == len(alike)
        for address in addresses:
            assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", address) and len(address) <= 50
    assert Bundle("me", "kaggle_t4x2", "", "train").address == "me/smallchat-kaggle-t4x2-02-train-sft"
