"""A `wsd` run can be made longer, and its constant part cooled down: both equal a run planned so from the start."""

from argparse import Namespace

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import read_json
from nbutils.core.run.decide import inspect
from nbutils.core.run.layout import Run
from nbutils.core.run.record import RUN_RECORD, read_record, write_record
from nbutils.core.stages import spec
from nbutils.pipeline.cool_down import cooled
from nbutils.pipeline.parameters import plan
from nbutils.train.rehearsal import steps_that_fit
from tests.train.forked import forked
from tests.train.runs import SMALL, checkpoint, logged, result, small_settings, written

WSD = {
    "schedule": "wsd",
    "optimizer": "muon",
    "cooldown_fraction": 0.25,
    "max_steps": 16,
    "checkpoint_steps": 3,
    "checkpoints_kept": 1,
    "processes": 1,
}


def train(run, **changes):
    """Trains a `wsd` run to its end, or to a pause; its folder."""
    forked(small_settings(run, **WSD | changes), 1)
    return run


def names(run):
    """The checkpoints, the newest first."""
    return [each.name for each in Run(run).checkpoints()]


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    run = train(tmp_path_factory.mktemp("longer"))
    data = plan(profile(tmp_path_factory.mktemp("profile"), run), []).stages[0]
    record = {"parts": inspect(data.stage, data.settings).parts, "status": "done", "outputs": {}, "work_seconds": 1}
    write_record(run / "data" / "stage.json", record)
    return run


def profile(folder, run, **changes):
    file = folder / "wsd.yaml"
    given = SMALL | WSD | {"run_dir": str(run)} | changes
    file.write_text("".join(f"{name}: {value!r}\n" for name, value in given.items()))
    return file


def cool_down(folder, parent, which="", *overrides, **changes):
    """The plan that `--cool-down` makes of a profile."""
    planned = plan(profile(folder, parent, **changes), list(overrides))
    given = Namespace(cool_down=f"{parent}{which}", overrides=list(overrides), explain=False)
    return cooled(given, planned)


def test_the_rate_is_constant_until_the_cool_down_whose_first_checkpoint_is_kept(longer):
    rates = {row["step"]: row["learning_rate"] for row in logged(longer, "train")}
    assert len({rates[step] for step in range(3, 14)}) == 1
    assert [rates[step] / rates[12] for step in (14, 15, 16)] == pytest.approx([1 - (n / 4) ** 0.5 for n in (1, 2, 3)])
    assert names(longer) == ["step-000015", "step-000012"]  # one is kept, and the pinned one


@pytest.mark.soak
def test_a_paused_run_is_made_longer(tmp_path, longer):
    train(tmp_path, max_steps=8, pause_after_steps=5)
    assert names(tmp_path) == ["step-000005"]
    train(tmp_path)
    assert result(tmp_path) == result(longer)


def test_a_constant_part_is_cooled_down_into_a_new_run(tmp_path, longer):
    planned = cool_down(tmp_path, longer)
    assert planned.run.name == f"{longer.name}-cooled-12"
    parent = {"run": str(longer), "checkpoint": "step-000012"}
    assert (read_record(planned.run / RUN_RECORD) or {})["parent"] == parent
    assert cool_down(tmp_path, longer).run == planned.run  # the same command goes on with it
    assert cool_down(tmp_path, longer, "", "max_steps=30").stages[1].settings.max_steps == 30  # or later
    settings = planned.stages[1].settings
    assert settings.max_steps == 16
    train(planned.run, max_steps=settings.max_steps)
    assert result(planned.run) == result(longer)


@pytest.mark.soak
def test_a_run_lands_in_time_with_the_steps_that_were_fixed_and_max_steps_makes_the_same(tmp_path):
    timed = {"finish_in_minutes": 0.2, "max_steps": 0, "eval_steps": 20}
    run = train(tmp_path / "timed", **timed, pause_after_steps=5)
    steps = read_json(run / "train" / "settings.json")["derived"]["measured"]["steps"]
    train(run, **timed)
    (end,) = logged(run, "end")
    assert end["steps"] == end["step"] == steps >= 20
    assert not list((run / "train").glob(".*"))
    assert result(train(tmp_path / "again", eval_steps=20, max_steps=steps)) == result(run)


def test_steps_fit_with_what_is_beside_them(tmp_path):
    seconds = {"step": 0.1, "first": 3.0, "evaluation": 2.0, "checkpoint": 0.4}
    settings = small_settings(tmp_path, max_steps=0, finish_in_minutes=1, eval_steps=10, checkpoint_steps=4)
    steps = steps_that_fit(seconds, settings)
    taken = steps * (0.1 + 2 / 10 + 0.4 / 4) + 2 * 3.0 + 0.4
    assert 0.9 * 60 < taken <= 60
    with pytest.raises(UserError, match=r"only 7 optimizer steps .* takes 7 s"):
        steps_that_fit(seconds | {"step": 7.0}, settings)


@pytest.mark.soak
def test_a_run_that_got_too_short_says_so(tmp_path):
    train(tmp_path, pause_after_steps=7)
    forked(small_settings(tmp_path, **WSD | {"max_steps": 8}), 1, fails=True)
    assert "step-000007 is behind step 6" in (tmp_path / "train" / "progress.jsonl").read_text()


def test_what_cannot_be_cooled_down_is_one_sentence(tmp_path, longer):
    for changes, which, words, *overrides in (
        ({"schedule": "cosine"}, "", "schedule is cosine"),
        ({}, "@step-000016", "no checkpoint step-000016 .*there: .*step-000012"),
        ({}, "/data", "no checkpoint of the constant part .*none"),
        ({"learning_rate": 0.5}, "", "other settings .parameter learning_rate"),
        ({"eval_fraction": 0.5}, "", "data of .* eval_fraction"),
        ({"run_dir": str(tmp_path)}, "", "holds something else"),
        ({}, "", "max_steps is 13", "max_steps=13"),
    ):
        with pytest.raises(UserError, match=words):
            cool_down(tmp_path, longer, which, *overrides, **changes)


@pytest.mark.parametrize("free", [["max_steps"], []])
def test_what_a_checkpoint_leaves_open_makes_no_paused_run_stale(tmp_path, free):
    settings = small_settings(tmp_path, **WSD)
    stage = spec("train")
    record = {"parts": inspect(stage, settings).parts, "status": "paused", "outputs": {}, "work_seconds": 1}
    written(settings)
    write_record(tmp_path / "train" / "stage.json", record)
    checkpoint(Run(tmp_path).checkpoints_folder, 5, open=free)
    assert inspect(stage, small_settings(tmp_path, **WSD | {"max_steps": 20})).stale is not bool(free)
