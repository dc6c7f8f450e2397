"""A bundled sweep: what its session continues, how it ends, and on a simulated Kaggle."""

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.core.run.layout import Run
from nbutils.core.run.state import State
from nbutils.kaggle.start import Bundle, Environment
from nbutils.kaggle.sweep_session import SweepSession
from tests.kaggle.simulated import SMALL, bundles
from tests.train.runs import checkpoint


def sweep(folder, done, step=0):
    """Two trials of a sweep; those that are not done have a checkpoint of that step, if it is not 0."""
    write_json(folder / "sweep.json", {"schema": 1, "trials": {"a": {}, "b": {}}})
    write_json(folder / "verdict.json", {"left": 2 - len(done)})
    for name in "ab":
        status = State.DONE if name in done else State.RUNNING
        write_json(folder / name / "train" / "stage.json", {"schema": 1, "status": status})
        if name in done or step:
            checkpoint(folder / name / "train" / "checkpoints", step or 9)
    return folder


@pytest.fixture
def session(place, monkeypatch):
    """Of a bundle of the sweep, with its folder's name."""
    monkeypatch.setattr("nbutils.kaggle.sweep_session.Guard", lambda *_: None)
    made = SweepSession(Bundle("me", "small", "", "sweep"), Environment(place, "Batch", False, ()))
    made.place = place
    return made


@pytest.mark.parametrize("other,furthest", [(("", 4), ("a", 0)), (("", 0), ("", 3))])
def test_a_session_goes_on_with_the_sweep_that_came_furthest(session, other, furthest, capsys):
    for name, seen in {"first": other, "second": furthest}.items():
        sweep(session.place / "input" / name / "runs" / "mine", *seen)
    sweep(session.place / "input" / "third" / "runs" / "another", "ab")
    session.resume({"run_dir": "runs/mine"})
    assert "second" in capsys.readouterr().out
    here = session.place / "working" / "runs" / "mine"
    done, step = furthest
    assert Run(here / "a").state("train") == (State.DONE if done else State.RUNNING)
    kept = {name: bool(Run(here / name).checkpoints()) for name in "ab"}
    assert kept == {"a": bool(step) and not done, "b": bool(step)}
    session.close()
    assert read_json(here / "session.json")["status"] == "paused"
    assert f"{2 - len(done)} trial" in (said := capsys.readouterr().out) and "To continue: attach" in said


def test_a_sweep_that_kaggle_would_not_keep_is_not_brought(session, monkeypatch):
    sweep(session.place / "input" / "first" / "runs" / "mine", "a")
    monkeypatch.setattr("nbutils.kaggle.carry_over.LIMIT", 3)
    with pytest.raises(UserError, match="working folder"):
        session.resume({"run_dir": "runs/mine"})
    assert not (session.place / "working" / "runs").exists()


def test_a_sweep_with_nothing_left_is_done(session):
    sweep(session.place / "working" / "runs" / "mine", "ab")
    session.resume({"run_dir": "runs/mine"})
    session.close()
    assert read_json(session.run.path / "session.json")["status"] == "done"


def test_a_session_that_fails_keeps_its_trials(session):
    session.resume({"run_dir": "runs/mine"})
    assert not session.keep_output(ValueError("early"))
    sweep(session.run.path, "a")
    assert session.keep_output(ValueError("late"))
    assert read_json(session.run.path / "session.json")["error"] == "late"


@pytest.mark.soak
def test_a_bundled_sweep_runs_and_a_later_session_adds_nothing(account, tmp_path):
    options = ["--sweep=learning_rate=0.00001,0.01", "--seeds=1", "-p", "max_steps=4"]
    (bundle,) = bundles(SMALL, tmp_path / "bundles", *options)
    outcome = account.run(bundle, {})
    folder = outcome.working / "runs" / "small-sweep"
    assert read_json(folder / "session.json")["status"] == "done" and "Take learning_rate 0.01" in outcome.text
    again = account.run(bundle, {f"someone/{bundle.name}": outcome.working})
    assert "Continues the sweep in" in again.text and "Nothing is left to run." in again.text
    before, after = (read_json(out.working / "runs/small-sweep/verdict.json") for out in (outcome, again))
    assert before == after
