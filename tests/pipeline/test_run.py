"""What a run executes, skips, keeps and refuses."""

from __future__ import annotations

import errno
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from nbutils.core.errors import UserError
from nbutils.core.run import key
from nbutils.core.run.stage import locked
from nbutils.pipeline.run import StageFailed
from tests.pipeline.conftest import ALL
from tests.pipeline.fake import STAGES

NEW_RATE = "learning_rate=0.5"


def test_a_second_run_does_nothing_and_says_so(pipeline):
    assert pipeline.go() == ALL
    assert "3 words" in pipeline.said
    assert pipeline.go() == []
    assert re.search(r"Nothing to do: all 3 stages in .* are done\.", pipeline.said)
    listing = {str(path.relative_to(pipeline.run)) for path in pipeline.run.rglob("*") if path.is_file()}
    assert listing == {
        *("run.json", "first/stage.json", "first/words.txt", "second/stage.json", "second/final/model.txt"),
        *("third/stage.json", "third/report.txt"),
    }


@pytest.mark.parametrize(
    "change,reruns",
    [
        (["note=new"], []),
        (["step_seconds=0.001"], []),
        (["words=4"], ["first", "second"]),  # the model comes out the same, so that third has nothing new to read
        (["words=4 "], ["first", "second"]),
        (["seed=2"], ["first", "second"]),
        ([NEW_RATE], ["second", "third"]),
        (["steps=4"], ["second"]),
        (["title=new"], ["third"]),
        (["01_first.ipynb", "stage.finish", "# done\nstage.finish"], []),
        (["01_first.ipynb", "## Do it", "## Do something else"], []),
        (["01_first.ipynb", "# number of words", "# how many words there are"], []),
        (["01_first.ipynb", "words: int = 3", "words: int = 5"], ["first", "second"]),
        (["01_first.ipynb", '"word "', '"Wort "'], ["first", "second"]),
        (["01_first.ipynb", "wrote", "has written"], ["first"]),
        (["02_second.ipynb", "steps'", "optimizer steps'"], ["second"]),
        (["03_third.ipynb", "stage.finish()", "stage.finish(made='a report')"], ["third"]),
        (["first/words.txt", "changed by hand"], ["second"]),
        (["second/final/model.txt", "changed by hand"], ["third"]),
        (["third/report.txt", "changed by hand"], []),
    ],
)
def test_each_change_reruns_what_depends_on_it(done, change, reruns):
    """Of a parameter, of a notebook's cells, of a file."""
    what, *how = change
    if what.endswith(".ipynb"):
        done.edit(what, *how)
    elif how:
        (done.run / what).write_text(*how)
    overrides = [] if how else [what]
    expected = done.explained(*overrides)
    assert done.go(*overrides) == reruns
    for name in ALL:
        assert (name in reruns) <= (expected[name].split(" ")[0] in ("run", "look"))
    assert done.go(*overrides) == []


@pytest.mark.parametrize(
    "name,text,reruns",
    [
        ("first/work.py", "\nX = 1\n", ["first"]),
        ("first/work.py", "\n# a remark\n", []),
        ("first/work.py", '\n"""A remark."""\n', []),
        ("first/work.py", "\ndef f():\n    raise UserError('other words')\n", []),
        ("second/page.jinja", "more", ["second"]),
        ("second/page.jinja", "{# why #}", []),
        ("first/display.py", "\nX = 1\n", []),
    ],
)
def test_each_declared_module_reruns_what_depends_on_it(pipeline, tmp_path, monkeypatch, name, text, reruns):
    work = "def f():\n    raise UserError('words')\n"
    for file, content in {"first/work.py": work, "second/page.jinja": "page", "first/display.py": ""}.items():
        (tmp_path / "code" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / file).write_text(content)
    monkeypatch.setattr(key, "PACKAGE", tmp_path / "code")
    declared = {"first": ("first.work",), "second": ("second/page.jinja",)}
    known = tuple(replace(stage, code=declared.get(stage.name, ())) for stage in STAGES)
    monkeypatch.setattr("nbutils.core.stages.STAGES", known)
    pipeline.go()
    path = tmp_path / "code" / name
    path.write_text(text if "raise" in text else path.read_text() + text)
    assert pipeline.go() == reruns


def test_a_lost_file_is_made_again(done):
    (done.run / "second/final/model.txt").unlink()
    assert "missing file" in done.explained()["second"]
    assert done.go() == ["second"]


@pytest.mark.parametrize("earlier", [(), ("words=4",)])
def test_long_stale_work_stops_the_run_and_asks_before_an_earlier_stage_is_replaced(long, earlier):
    with pytest.raises(UserError, match=r"60 minutes.*learning_rate \(0.001 → 0.5\).*--accept.*--force"):
        long.go(*earlier, NEW_RATE)
    assert long.explained(*earlier, NEW_RATE)["second"].startswith("ask")
    assert long.text("second/final/model.txt") == "model of rate 0.001"
    assert long.text("first/words.txt") == "word " * 3


def test_accept_keeps_it_and_later_runs_agree(long):
    assert long.go(NEW_RATE, accept=True) == []
    assert long.go(NEW_RATE) == []
    assert long.text("second/final/model.txt") == "model of rate 0.001"


def test_force_sets_it_aside_and_leaves_the_rest_alone(long):
    assert long.go(NEW_RATE, force=True) == ["second", "third"]
    (old,) = long.aside("second", "final/model.txt")
    assert old.read_text() == "model of rate 0.001"
    assert long.text("second/final/model.txt") == "model of rate 0.5"
    assert long.go(NEW_RATE, force=True) == []


def test_from_reruns_a_stage_and_all_later_and_sets_long_work_aside(long):
    assert long.explained(start="second")["first"].startswith("left as it is")
    assert long.go(start="second") == ["second", "third"]
    assert len(long.aside("second")) == 1


def test_only_runs_one_stage_on_what_is_there_and_warns_if_that_is_stale(pipeline):
    with pytest.raises(UserError, match=r"first/stage.json does not exist: run notebooks/01_first.ipynb first"):
        pipeline.go(only="second")
    pipeline.go()
    changed = ("words=9", NEW_RATE)
    assert pipeline.go(*changed, only="second") == ["second"]
    assert re.search(r"Warning: first is used as it is.*words \(3 → 9\)", pipeline.said)
    assert pipeline.go(*changed, only="second") == []
    assert "--force runs it again" in pipeline.said
    assert pipeline.go(*changed, only="second", force=True) == ["second"]


def test_what_is_done_is_not_asked_about_again(done, monkeypatch):
    """A finished data stage may be carried to a machine that has neither its data nor a network."""
    seen: list[str] = []

    def problems(plan, picked) -> list[str]:
        seen.extend(entry.stage.name for entry in picked)
        return ["No."]

    monkeypatch.setattr("nbutils.pipeline.ahead.problems", problems)
    assert done.go() == seen == []
    for options, asked in (({}, ["second", "third"]), ({"start": "first"}, ALL)):
        seen.clear()
        with pytest.raises(UserError, match="No"):
            done.go(NEW_RATE, **options)
        assert seen == asked


def test_a_paused_run_says_how_far_it_is_and_goes_on(paused):
    assert paused.status == 0
    assert "second is paused at 50 % (step 2): run the same command again to go on. third wait" in paused.said
    assert paused.explained("steps=4")["second"].startswith("resume (paused at 50 %")
    assert paused.go("steps=4") == ["second", "third"]
    assert paused.go("steps=4") == []


def test_allow_paused_runs_later_stages_on_the_newest_checkpoint_and_says_how_to_go_on(paused):
    words = "second is paused at 50 % (step 2): run again without --allow-paused to go on with it."
    assert paused.go("steps=4", only="second", allow_paused=True) == []
    assert words in paused.said and "done already" not in paused.said
    assert paused.go("steps=4", allow_paused=True) == ["third"]
    assert words in paused.said and paused.status == 0
    assert paused.text("third/report.txt") == "reportcheckpoint"
    assert paused.go("steps=4") == ["second", "third"]
    assert paused.text("third/report.txt") == "reportmodel of rate 0.001"


def test_a_pause_under_allow_paused_says_how_to_go_on(pausing):
    assert pausing.go("steps=4", allow_paused=True) == ALL
    assert "run again without --allow-paused to go on with it." in pausing.said


@pytest.mark.parametrize("status", ["paused", "running"])
def test_from_makes_unfinished_work_anew_and_sets_its_checkpoints_aside(paused, status):
    paused.record("second", status=status)
    assert paused.go("steps=4", start="second") == ["second", "third"]
    assert "second: set the earlier work aside" in paused.said
    assert len(paused.aside("second", "checkpoints/step-000002")) == 1


def test_a_pause_under_from_does_not_send_one_back_to_the_start(pausing):
    """The same command would begin the stage anew: the last sentence says to leave --from out, and that goes on."""
    assert pausing.go("steps=4", only="first") == ["first"]
    assert pausing.go("steps=4", start="second") == ["second"]
    assert "Leave out --from then: with it the stage starts again." in pausing.said
    assert pausing.go("steps=4") == ["second", "third"]
    assert (pausing.run / "second/checkpoints/step-000002").is_dir()


def test_a_pause_with_other_settings_asks_and_can_be_set_aside(paused):
    with pytest.raises(UserError, match="learning_rate"):
        paused.go("steps=4", NEW_RATE)
    with pytest.raises(UserError, match="cannot be continued"):
        paused.go("steps=4", NEW_RATE, accept=True)
    assert paused.go("steps=4", NEW_RATE, force=True) == ["second", "third"]
    assert len(paused.aside("second", "checkpoints/step-000002")) == 1


@pytest.mark.parametrize(
    "state,status,runs",
    [("done", "done", []), ("paused", "paused", ["second", "third"]), ("paused", "running", ["second", "third"])],
)
def test_a_new_library_is_reported_and_reruns_nothing(request, state, status, runs):
    pipeline = request.getfixturevalue(state)
    versions = pipeline.record("second")["versions"]
    pipeline.record("second", status=status, versions=versions | {"torch": "1.0.0"})
    assert pipeline.go(*(["steps=4"] if runs else [])) == runs
    assert re.search(r"second was made with torch 1\.0\.0 \(now .*\); nothing is rerun", pipeline.said)


def test_what_was_accepted_is_remembered_where_work_goes_on(paused):
    paused.edit("02_second.ipynb", "steps'", "optimizer steps'")
    assert paused.go("steps=4", accept=True) == ["second", "third"]
    (accepted,) = paused.record("second")["accepted"]
    assert accepted["changed"] == ["the notebook's code cells"]
    assert paused.go("steps=5", force=True) == ["second"]
    assert "accepted" not in paused.record("second")


def test_an_error_after_the_stage_has_finished_is_said(pipeline):
    def fail(job) -> None:
        if job.source.name.startswith("02"):
            raise StageFailed("02_second.ipynb, cell In [5] raised ZeroDivisionError: division by zero.")

    pipeline.after = fail
    pipeline.go()
    assert pipeline.status == 0
    assert "second is done, but after stage.finish() 02_second.ipynb, cell In [5] raised ZeroDi" in pipeline.said


def test_a_signal_as_a_stage_completes_ends_the_run_with_its_number(pipeline):
    pipeline.after = lambda job: os.kill(os.getpid(), signal.SIGTERM)
    assert pipeline.go() == ["first"] and pipeline.status == 128 + signal.SIGTERM
    assert "Stopped before second; run the same command again to go on." in pipeline.said
    pipeline.after = lambda job: None
    assert pipeline.go() == ["second", "third"]


def test_work_that_cannot_be_set_aside_is_said_in_a_sentence(long, monkeypatch):
    def rename(self: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match=r"run/second cannot be changed \(Permission denied\)"):
        long.go(NEW_RATE, force=True)


@pytest.mark.parametrize(
    "text,words",
    [
        ("learning_rat: 0.1", ["line 2", "parameter 'learning_rat'", "Did you mean 'learning_rate'?"]),
        ("learning_rate: 7", ["line 2, column 16", "'learning_rate' is 7", "less than 1"]),
        ("steps: yes", ["line 2", "'steps' is 'yes'", "integer"]),
        ("title: 5", ["line 2", "'title' is 5", "string"]),
        ("steps:", ["line 2", "'steps' is None", "integer"]),
        ("learning_rate: .nan", ["line 2", "'learning_rate' is '.nan'"]),
        ("learning_rate: 1e400", ["line 2", "'learning_rate' is inf"]),
    ],
)
def test_a_wrong_profile_stops_before_anything_starts(pipeline, text, words):
    pipeline.profile.write_text(pipeline.profile.read_text() + text)
    with pytest.raises(UserError) as error:
        pipeline.go()
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not pipeline.run.exists()


@pytest.mark.parametrize(
    "file,old,new,words",
    [
        ("02_second.ipynb", "steps: int = 3 ", "steps: int = 3 0 ", "code cell 1, line 4: "),
        ("01_first.ipynb", "seed: int = 1 ", "%env A=1\nseed: int = 1 ", "code cell 1, line 2: "),
        ("03_third.ipynb", "stage.finish()", "stage.finish((", "code cell 4, line 1: "),
    ],
)
def test_a_typo_in_a_later_notebook_stops_before_the_first(pipeline, file, old, new, words):
    pipeline.edit(file, old, new)
    with pytest.raises(UserError, match=re.escape(f"{file}, {words}")):
        pipeline.go()
    assert not pipeline.run.exists()


def test_magics_are_left_to_the_kernel(pipeline):
    pipeline.edit("03_third.ipynb", "stage.finish()", "%matplotlib inline\nstage.finish()")
    assert "run" in pipeline.explained()["third"]


def test_text_in_yaml_reaches_the_stage_as_a_number(pipeline):
    pipeline.profile.write_text(pipeline.profile.read_text() + "learning_rate: 1e-5\ntitle: no\n")
    pipeline.go()
    assert pipeline.text("third/report.txt") == "nomodel of rate 1e-05"


def test_two_pipelines_in_one_run_folder(pipeline):
    with locked(pipeline.run), pytest.raises(UserError, match=r"process \d+ on .* is at work in .*run"):
        pipeline.go()
    assert pipeline.go() == ALL


def test_an_abandoned_lock_file_holds_nobody_up(pipeline):
    pipeline.run.mkdir()
    (pipeline.run / ".lock").touch()
    (pipeline.run / ".owner-1.txt").write_text("ghost")
    assert pipeline.go() == ALL
    assert not list(pipeline.run.glob(".*"))
