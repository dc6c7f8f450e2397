"""What a run executes, skips, keeps and refuses."""

import errno
import os
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from nbutils.core.errors import UserError
from nbutils.core.run import key
from nbutils.core.run.stage import locked
from nbutils.pipeline.run import StageFailed
from nbutils.pipeline.supervise import MARK, run_mark
from tests.cells import run_cells
from tests.pipeline.conftest import ALL
from tests.pipeline.fake import STAGES

NEW_RATE = "learning_rate=0.5"
REST = ["second", "third"]


def test_a_second_run_does_nothing_and_says_what_is_there(done):
    assert done.go() == []
    assert re.search(r"\nfirst +skipped +– +3 words\n(.*\n)*Nothing to do: all 3 stages in .* are done\.\n", done.said)


@pytest.mark.parametrize(
    "change",
    [
        ("", "note=new"),
        ("first second", "words=4"),  # the model comes out the same, so that third has nothing new to read
        ("first second", "seed=2"),
        ("second third", NEW_RATE),
        ("second", "steps=5"),
        ("third", "title=new"),
        ("", "01_first.ipynb", "stage.finish", "# done\nstage.finish"),
        ("", "01_first.ipynb", "## Do it", "## Do something else"),
        ("", "01_first.ipynb", "# number of words", "# how many words there are"),
        ("first second", "01_first.ipynb", "words: int = 3", "words: int = 5"),
        ("first second", "01_first.ipynb", '"word "', '"Wort "'),
        ("first", "01_first.ipynb", "wrote", "has written"),
        ("third", "03_third.ipynb", "stage.finish()", "stage.finish(made='a report')"),
        ("second", "first/words.txt", "changed by hand"),
        ("third", "second/final/model.txt", "changed by hand"),
        ("", "third/report.txt", "changed by hand"),
    ],
)
def test_each_change_reruns_what_depends_on_it(done, change):
    """Of a parameter, of a notebook's cells, of a file; first come the stages that run again."""
    reruns, what, *how = change
    if what.endswith(".ipynb"):
        done.edit(what, *how)
    elif how:
        (done.run / what).write_text(*how)
    overrides = [] if how else [what]
    expected = done.explained(*overrides)
    assert done.go(*overrides) == reruns.split()
    for name in ALL:
        assert (name in reruns) <= (expected[name].split(" ")[0] in ("run", "look"))
    assert done.go(*overrides) == []


def test_declared_code_reruns_its_stage(pipeline, tmp_path, monkeypatch):
    """Here a template; of modules `tests/test_house.py` says what counts."""
    monkeypatch.setattr(key, "PACKAGE", tmp_path)
    declaring = replace(STAGES[0], code=("./page.jinja",))
    monkeypatch.setattr("nbutils.core.stages.STAGES", (declaring, *STAGES[1:]))
    for text, reruns in (("", ALL), ("{# why #}", []), ("more", ["first"])):
        (tmp_path / "page.jinja").write_text(text)
        assert pipeline.go() == reruns


@pytest.mark.parametrize("earlier", [(), ("words=4",)])
def test_long_stale_work_stops_the_run_and_asks_before_an_earlier_stage_is_replaced(long, earlier):
    with pytest.raises(UserError, match=r"60 minutes.*learning_rate \(0.001 → 0.5\).*--accept.*--force"):
        long.go(*earlier, NEW_RATE)
    assert long.explained(*earlier, NEW_RATE)["second"].startswith("ask")
    assert long.text("second/final/model.txt") == "model of rate 0.001"
    assert long.text("first/words.txt") == "word " * 3


def test_accept_keeps_it_and_later_runs_agree(long):
    assert long.go(NEW_RATE, accept=True) == long.go(NEW_RATE) == []
    assert long.text("second/final/model.txt") == "model of rate 0.001"


def test_force_sets_it_aside_and_leaves_the_rest_alone(long):
    assert long.go(NEW_RATE, force=True) == REST
    (old,) = long.aside("second")
    assert (old / "final/model.txt").read_text() == "model of rate 0.001"
    assert long.text("second/final/model.txt") == "model of rate 0.5"
    assert long.go(NEW_RATE, force=True) == []


@pytest.mark.parametrize("state", ["long", "paused"])
def test_from_reruns_a_stage_and_all_later_and_sets_its_work_aside(request, state):
    pipeline = request.getfixturevalue(state)
    assert pipeline.explained(start="second")["first"].startswith("left as it is")
    assert pipeline.go(start="second") == REST
    assert "second: set the earlier work aside" in pipeline.said and len(pipeline.aside("second")) == 1


def test_only_runs_one_stage_on_what_is_there_and_warns_if_that_is_stale(done):
    changed = ("words=9", NEW_RATE)
    assert done.go(*changed, only="second") == ["second"]
    assert re.search(r"Warning: first is used as it is.*words \(3 → 9\)", done.said)
    assert done.go(*changed, only="second") == []
    assert "--force runs it again" in done.said
    assert done.go(*changed, only="second", force=True) == ["second"]


def test_what_is_done_is_not_asked_about_again(done, monkeypatch):
    """A finished data stage may be carried to a machine that has neither its data nor a network."""
    monkeypatch.setattr("nbutils.pipeline.ahead.problems", lambda plan, picked: [each.stage.name for each in picked])
    assert done.go() == []
    for start, asked in ((None, "second third"), ("first", "first second third")):
        with pytest.raises(UserError, match=f"^{asked}$"):
            done.go(NEW_RATE, start=start)


def test_what_is_known_only_after_a_stage_is_asked_before_the_next(pipeline, monkeypatch):
    monkeypatch.setattr("nbutils.pipeline.ahead.problems", lambda plan, picked: ["No."] * (len(picked) < 3))
    with pytest.raises(UserError):
        pipeline.go()
    assert pipeline.executed == ["first"]


def test_a_paused_run_says_how_far_it_is_and_goes_on(paused):
    assert paused.status == 0
    assert "second is paused at 50 % (step 2): run the same command again to go on. third wait" in paused.said
    assert paused.explained()["second"].startswith("resume (paused at 50 %")
    assert paused.go() == REST
    assert paused.go() == []


WITHOUT = "second is paused at 50 % (step 2): run again without --allow-paused to go on with it."


def test_allow_paused_runs_later_stages_on_the_newest_checkpoint_and_says_how_to_go_on(paused):
    assert paused.go(only="second", allow_paused=True) == []
    assert WITHOUT in paused.said and "done already" not in paused.said
    assert paused.go(allow_paused=True) == ["third"]
    assert WITHOUT in paused.said and paused.status == 0
    assert paused.text("third/report.txt") == "reportcheckpoint"
    assert paused.go() == REST
    assert paused.text("third/report.txt") == "reportmodel of rate 0.001"


def test_a_pause_under_allow_paused_says_how_to_go_on(pausing):
    assert pausing.go(allow_paused=True) == ALL
    assert WITHOUT in pausing.said


def test_a_pause_under_from_does_not_send_one_back_to_the_start(pausing):
    """The same command would begin the stage anew: the last sentence says to leave --from out, and that goes on."""
    assert pausing.go(only="first") == ["first"]
    assert pausing.go(start="second") == ["second"]
    assert "Leave out --from then: with it the stage starts again." in pausing.said
    assert pausing.go() == REST
    assert (pausing.run / "second/checkpoints/step-000002").is_dir()


def test_a_new_library_is_reported_and_reruns_nothing(done):
    done.record("second", versions=done.record("second")["versions"] | {"torch": "1.0.0"})
    assert done.go() == []
    assert re.search(r"second was made with torch 1\.0\.0 \(now .*\); nothing is rerun", done.said)


def test_what_was_accepted_is_remembered_where_work_goes_on(paused):
    paused.edit("02_second.ipynb", "steps'", "optimizer steps'")
    assert paused.go(accept=True) == REST
    (accepted,) = paused.record("second")["accepted"]
    assert accepted["changed"] == ["the notebook's code cells"]
    assert paused.go("steps=5", force=True) == ["second"]
    assert "accepted" not in paused.record("second")


def test_an_error_after_the_stage_has_finished_is_said(pipeline):
    def fail(job):
        if job.source.name.startswith("02"):
            raise StageFailed("02_second.ipynb, cell In [5] raised ZeroDivisionError: division by zero.")

    pipeline.after = fail
    assert pipeline.go() == ALL and pipeline.status == 0
    assert "second is done, but after stage.finish() 02_second.ipynb, cell In [5] raised ZeroDi" in pipeline.said


def test_a_signal_as_a_stage_completes_ends_the_run_with_its_number(pipeline):
    pipeline.after = lambda job: signal.raise_signal(signal.SIGTERM)
    assert pipeline.go() == ["first"] and pipeline.status == 128 + signal.SIGTERM
    assert "Stopped before second; run the same command again to go on." in pipeline.said
    pipeline.after = lambda job: None
    assert pipeline.go() == REST


def test_work_that_cannot_be_set_aside_is_said_in_a_sentence(long, monkeypatch):
    def rename(self, target):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match=r"run/second cannot be changed \(Permission denied\)"):
        long.go(NEW_RATE, force=True)


@pytest.mark.parametrize(
    "mistake",
    [
        (r"line 2.*parameter 'learning_rat'.*Did you mean 'learning_rate'\?", "learning_rat: 0.1"),
        ("line 2, column 16.*'learning_rate' is 7.*less than 1", "learning_rate: 7"),
        ("line 2.*'learning_rate' is 'nan'.*finite", "learning_rate: nan"),
        ("line 2.*'steps' is 'yes'.*integer", "steps: yes"),
        ("line 2.*'steps' is None.*integer", "steps:"),
        ("line 2.*'steps' is True.*number is expected", "steps: true"),
        ("02_second.ipynb, code cell 1, line 4: ", "02_second.ipynb", "steps: int = 4 ", "steps: int = 4 0 "),
        ("01_first.ipynb, code cell 1, line 2: ", "01_first.ipynb", "seed: int = 1 ", "%env A=1\nseed: int = 1 "),
        ("03_third.ipynb, code cell 4, line 1: ", "03_third.ipynb", "stage.finish()", "stage.finish(("),
    ],
)
def test_a_mistake_in_the_profile_or_a_later_notebook_stops_before_anything_starts(pipeline, mistake):
    words, *change = mistake
    (pipeline.edit if change[1:] else pipeline.add)(*change)
    with pytest.raises(UserError, match=words):
        pipeline.go()
    assert not pipeline.run.exists()


def test_magics_are_left_to_the_kernel(pipeline):
    pipeline.edit("03_third.ipynb", "stage.finish()", "%matplotlib inline\nstage.finish()")
    assert "run" in pipeline.explained()["third"]


def test_text_in_yaml_is_the_same_number_for_a_notebook_run_by_hand_and_the_pipeline(pipeline):
    pipeline.add("learning_rate: 1e-5\ntitle: no")
    for name in ("01_first.ipynb", "02_second.ipynb"):
        run_cells(pipeline.notebooks / name, run_dir=str(pipeline.run), learning_rate="1e-5")
    assert pipeline.go() == ["third"]
    assert pipeline.text("third/report.txt") == "nomodel of rate 1e-05"
    assert pipeline.go(start="second") == REST
    assert pipeline.text("third/report.txt") == "nomodel of rate 1e-05"


def test_two_pipelines_in_one_run_folder(pipeline):
    with locked(pipeline.run), pytest.raises(UserError, match=r"process \d+ on .* is at work in .*run"):
        pipeline.go()
    assert pipeline.go() == ALL


def test_leftovers_of_an_earlier_run_are_ended_first(done):
    left = subprocess.Popen(["sleep", "300"], env={**os.environ, MARK: run_mark(done.run) + "-1-x"})
    done.go()
    assert "Ended 1 process(es) that an earlier run had left behind." in done.said
    assert left.wait(timeout=5) == -signal.SIGTERM
