"""Earlier work under other settings, sessions that fail, a whole pipeline short of time, options: without kernels."""

from __future__ import annotations

import argparse
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from nbutils.core.errors import UserError
from nbutils.core.files import KAGGLE, read_json, sha256_of_json, write_json
from nbutils.core.run.decide import inspect
from nbutils.core.run.key import key_parts
from nbutils.core.run.layout import Run
from nbutils.core.stages import spec
from nbutils.kaggle.carry_over import best, continues, settings_of
from nbutils.kaggle.command import add_arguments, bundle_of
from nbutils.kaggle.environment import WHOLE, Environment
from nbutils.kaggle.session import Session, too_late
from nbutils.kaggle.start import Bundle
from nbutils.pipeline.choice import Options as Choice
from nbutils.pipeline.choice import chosen
from nbutils.pipeline.parameters import plan
from nbutils.train.control import StepControl
from tests.kaggle.made_stages import checkpoint
from tests.kaggle.simulated import SMALL

NAMES = {"run_dir": "runs/mine", "learning_rate": 0.003}


@pytest.fixture
def kaggle(tmp_path, monkeypatch) -> Path:
    """Stands in for `/kaggle`."""
    monkeypatch.setenv(KAGGLE, str(tmp_path))
    for name in ("input", "working"):
        (tmp_path / name).mkdir()
    return tmp_path


def trained(kaggle: Path, status: str, seconds: float = 5.0, **changes: object) -> Path:
    """The training of an earlier session, as it would be in the run folder, with these settings but for `changes`."""
    settings = settings_of("train", NAMES | changes)
    parts = key_parts(spec("train"), settings)
    folder = settings.run_path / "train"
    record = {"schema": 1, "stage": "train", "status": status, "started": "2026-01-01T10:00:00+00:00", "facts": {}}
    record |= {"key": sha256_of_json(parts), "parts": parts, "outputs": {}, "work_seconds": seconds}
    write_json(folder / "stage.json", record)
    write_json(folder.parent / "run.json", {"schema": 1, "name": "mine", "parameters": {}})
    if status != "done":
        checkpoint(folder, 10)
    return folder


def kept(folder: Path, stale: str, in_pipeline: bool = False) -> bool:
    found, _ = best([folder.parent], "train", None)
    assert found is not None
    return continues(found, inspect(spec("train"), settings_of("train", NAMES)), stale, in_pipeline)


@pytest.mark.parametrize("status", ["done", "paused", "running"])
def test_work_that_fits_stays(kaggle, status):
    assert kept(trained(kaggle, status, seconds=5000), "")


def test_long_or_unfinished_work_of_other_settings_stops_the_session(kaggle):
    folder = trained(kaggle, "paused", learning_rate=0.1)
    with pytest.raises(UserError, match=r"step 10.*learning_rate \(0.1 → 0.003\).*--force") as raised:
        kept(folder, "")
    assert "--accept" not in str(raised.value)  # these checkpoints cannot be continued
    folder = trained(kaggle, "done", seconds=5000, learning_rate=0.1)
    with pytest.raises(UserError, match=r"learning_rate.*--accept.*--force"):
        kept(folder, "")


def test_force_starts_again_and_accept_keeps_a_finished_model(kaggle):
    folder = trained(kaggle, "done", seconds=5000, learning_rate=0.1)
    assert kept(folder, "accept") and kept(folder, "")  # accepted once, it fits
    folder = trained(kaggle, "done", seconds=5000, learning_rate=0.1)
    assert not kept(folder, "force") and not folder.exists()
    folder = trained(kaggle, "done", learning_rate=0.1)  # seconds of work
    assert not kept(folder, "") and not folder.exists()


def test_of_two_trainings_the_one_that_fits_is_found(kaggle):
    found, _ = best(
        [trained(kaggle, "done", learning_rate=0.1).parent], "train", {"parameters": {"learning_rate": 0.003}}
    )
    assert found is not None and not found.fits


# A session


def session(kaggle: Path, stage: str = "train", internet: bool = False, stale: str = "") -> Session:
    bundle = Bundle("me", "mine", "mine.yaml", stage, internet=internet, stale=stale)
    made = Session(bundle, Environment(kaggle, "Batch", internet, ()))
    made.run, made.names = Run(kaggle / "working" / "runs" / "mine"), NAMES
    return made


def test_a_failure_is_published_as_one_though_the_brought_record_says_paused(kaggle, capsys):
    trained(kaggle, "paused")
    made = session(kaggle)
    assert made.keep_output(UserError("no room")) is True
    record, note = made.run.record("train"), read_json(made.run.path / "session.json")
    assert record is not None and (record["status"], record["error"]) == ("failed", "no room")
    assert (note["status"], note["error"]) == ("failed", "no room")
    assert "\033[1;31m" in capsys.readouterr().out


@pytest.mark.parametrize("trouble", ["full disk", "damaged record"])
def test_a_failure_that_cannot_be_marked_costs_no_output_either(kaggle, capsys, monkeypatch, trouble):
    folder = trained(kaggle, "paused")
    made = session(kaggle)
    if trouble == "full disk":

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("nbutils.core.run.record.write_text", full)
    else:
        (folder / "stage.json").write_text("{")
    assert made.keep_output(UserError("it broke")) is True
    said = capsys.readouterr().out
    assert "Note: " in said and "what it made so far is kept" in said


@pytest.mark.parametrize("status,step", [("done", 0), ("paused", 10_000)])
def test_the_mirror_is_asked_where_what_is_attached_does_not_fit(kaggle, tmp_path_factory, status, step):
    """`--force` after the data changed: the new run, in the mirror alone, is not lost for the old one's sake."""

    class Held:
        def fetch(self, name: str, step: int) -> Path:
            assert (name, step) == ("mine", 0)
            return held.parent

    held = tmp_path_factory.mktemp("held") / "mine"
    shutil.copytree(trained(kaggle, "running").parent, held)
    old = trained(kaggle, status)
    record = read_json(old / "stage.json")
    parts = record["parts"] | {"upstream": {"data/train/x": "old"}}
    write_json(old / "stage.json", record | {"parts": parts, "key": sha256_of_json(parts)})
    if step:
        checkpoint(old, step)
    shutil.move(old.parent, kaggle / "input" / "it" / "mine")
    made = session(kaggle, internet=True, stale="force")
    made.mirror = Held()  # type: ignore[assignment]
    made.bring_earlier()
    assert made.continued is not None and made.continued.step == 10


def test_the_end_of_a_session_is_noted(kaggle):
    trained(kaggle, "done")
    made = session(kaggle)
    made.close()
    assert read_json(made.run.path / "session.json")["status"] == "done"
    made = session(kaggle, WHOLE)
    made.close()
    assert read_json(made.run.path / "session.json")["status"] == "running"
    made.waits = "evaluate waits."
    made.close()
    assert read_json(made.run.path / "session.json")["status"] == "paused"


@pytest.mark.parametrize("used,waits", [(30, False), (59, False), (61, True), (500, True)])
def test_the_evaluation_waits_where_little_of_the_budget_is_left(monkeypatch, used, waits):
    monkeypatch.setenv("NBUTILS_STARTED", str(time.time() - 60 * used))
    assert bool(too_late(100)) is waits
    assert too_late(0) == ""


def test_what_comes_before_the_evaluation_can_be_run_alone():
    picked = chosen(plan(SMALL, []), Choice(until="metrics"))
    assert [planned.stage.name for planned in picked] == ["data", "train", "metrics"]


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


def given(profile: Path, *words: str) -> Bundle:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    always = ["bundle", str(profile), "--out", "x", "--owner", "someone"]
    return bundle_of(parser.parse_args([*always, *words]), profile)


@pytest.fixture
def profile(tmp_path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SMALL.read_text() + "internet: false\ncheckpoint_mirror: me/mirror\nmirror_minutes: 5\n")
    return path


def test_a_profile_says_what_its_bundles_may_use_and_the_command_line_overrides_it(profile):
    found = given(profile)
    assert (found.internet, found.checkpoint_mirror, found.mirror_minutes) == (False, "me/mirror", 5.0)
    found = given(profile, "--mirror", "", "-p", "mirror_minutes=7", "-p", "internet=true", "--force")
    assert (found.internet, found.checkpoint_mirror, found.mirror_minutes, found.stale) == (True, "", 7.0, "force")
    assert not given(SMALL, "--offline").internet
    assert given(SMALL).internet and given(SMALL).mirror_minutes == 30.0
    asked = given(SMALL, "-p", "datasets=[a b]")
    assert asked.recipe == "tests/kaggle/small.yaml -p 'datasets=[a b]'"
    assert given(profile).recipe == "mine.yaml", "no place on this machine goes into a notebook"
    assert len(plan(profile, []).stages) == 6  # `run` knows the names and passes over them


@pytest.mark.parametrize(
    "options,words",
    [
        (["--attach", "foo"], ["--attach", "'foo'", "OWNER/DATASET"]),
        (["-p", "mirror_minutes=soon"], ["mirror_minutes", "more than 0"]),
        (["-p", "mirror_minutes=true"], ["mirror_minutes", "more than 0"]),
        (["--mirror", "foo"], ["mirror", "'foo'", "owner/name"]),
        (["-p", "mirror_minutes=0"], ["mirror_minutes", "more than 0"]),
        (["-p", "internet=2"], ["internet", "true or false"]),
    ],
)
def test_what_kaggle_would_refuse_is_one_sentence(profile, options, words):
    with pytest.raises(UserError) as raised:
        given(profile, *options)
    assert all(word in str(raised.value) for word in words)


def test_profiles_that_kaggle_would_take_for_one_have_addresses_of_their_own():
    alike = [f"a-profile-of-a-very-long-name-{number}" for number in (1, 2)] + [
        "модель",
        "модели",
        "modell-ä",
        "modell-",
    ]
    for name in ("data", "evaluate", WHOLE):
        addresses = [Bundle("me", profile, "", name).slug for profile in alike]
        assert len(set(addresses)) == len(alike)
        for address in addresses:
            assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", address) and len(address) <= 50
    assert Bundle("me", "kaggle_t4x2", "", "train").address == "me/smallchat-kaggle-t4x2-02-train-sft"
