"""A stage run by hand: its guard, its record, and work that is never thrown away by accident."""

import fcntl
import os
import re
import subprocess
import sys
import time
from subprocess import PIPE, STDOUT

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.core.run import pause
from nbutils.core.run.decide import Policy, carry_out, decide, inspect
from nbutils.core.run.layout import Run
from nbutils.core.run.stage import Stage, locked
from nbutils.core.run.state import State
from nbutils.pipeline.parameters import settings_of
from tests.conftest import ROOT
from tests.pipeline.fake import STAGES, write_notebooks

FIRST, SECOND, _ = STAGES


@pytest.fixture
def run(tmp_path, monkeypatch, made_once):
    monkeypatch.setenv("NBUTILS_NOTEBOOKS", str(made_once("three-notebooks", write_notebooks)))
    monkeypatch.setattr("nbutils.core.stages.STAGES", STAGES)
    return tmp_path / "run"


def asked(stage, run, **changed):
    """The settings of a stage."""
    return settings_of(stage, {"run_dir": str(run)} | changed)


def begin(stage, run, **changed):
    """The stage, at work."""
    return Stage.begin(stage.name, asked(stage, run, **changed))


def inspected(stage, run, **changed):
    """The state of a stage."""
    return inspect(stage, asked(stage, run, **changed))


def began(run, **files):
    """The first stage at work; `files`: what it has written."""
    stage = begin(FIRST, run)
    for name, text in files.items():
        (stage.folder / f"{name}.txt").write_text(text)
    return stage


def finish_first(run):
    """The first stage, done."""
    stage = began(run, words="words")
    stage.finish()
    return stage


def change_record(run, **changed):
    path = run / "first" / "stage.json"
    write_json(path, read_json(path) | changed)


def test_a_finished_stage_says_what_it_read_and_made(run):
    finish_first(run)
    stage = begin(SECOND, run)
    (stage.folder / "model.txt").write_text("m")
    stage.finish(steps=2)
    record = read_json(stage.folder / "stage.json")
    assert (record["status"], record["facts"], list(record["inputs"])) == ("done", {"steps": 2}, ["first/words.txt"])
    assert record["outputs"]["model.txt"]["bytes"] == 1
    assert read_json(run / "run.json")["parameters"]["learning_rate"] == 0.001


def test_a_finished_stage_that_is_opened_again_keeps_where_it_came_from(run, monkeypatch):
    before = read_json(finish_first(run).folder / "stage.json")
    monkeypatch.setattr("nbutils.core.run.stage.provenance", lambda: {"versions": {}, "git_commit": "another"})
    again = began(run).finish()
    assert all(again[name] == before[name] for name in ("started", "versions", "git_commit"))
    assert began(run, words="other words").finish()["git_commit"] == "another"


@pytest.mark.parametrize(
    "before,words",
    [
        (lambda run: None, "/stage.json does not exist"),
        (began, " is not finished"),
        (lambda run: began(run).finish("paused"), " is paused"),
    ],
)
def test_a_stage_begins_only_on_finished_ones_and_names_the_notebook(run, before, words):
    before(run)
    with pytest.raises(UserError, match=f"first{words}: run notebooks/01_first.ipynb first"):
        begin(SECOND, run)


def test_long_work_asks_and_nothing_is_touched_or_held(run):
    finish_first(run)
    change_record(run, work_seconds=3000)
    with pytest.raises(UserError, match=r"50 minutes.*words \(3 → 4\).*--accept.*--force"):
        begin(FIRST, run, words=4)
    assert inspected(FIRST, run).fits
    with locked(run):
        pass  # a pipeline may


def test_work_of_a_killed_stage_counts_by_its_newest_file(run):
    later = time.time() + 3600
    os.utime(began(run, half="h").folder / "half.txt", (later, later))
    assert inspected(FIRST, run, words=4).protected and inspected(FIRST, run).state is State.RUNNING


def test_seconds_of_interrupted_sessions_add_up(run):
    began(run).finish("paused", step=1, fraction=0.5)
    change_record(run, work_seconds=400)
    assert began(run).finish()["work_seconds"] >= 400


def test_unfinished_checkpoints_ask_however_short_the_work_and_cannot_be_accepted(run):
    finish_first(run)
    checkpoint = begin(SECOND, run).folder / "checkpoints" / "step-000001"
    checkpoint.mkdir(parents=True)
    state = inspected(SECOND, run, learning_rate=0.2)
    for policy, words in ((Policy(), "--force"), (Policy(accept=True), "cannot be continued")):
        with pytest.raises(UserError, match=rf"learning_rate \(0.001 → 0.2\).*{words}"):
            carry_out(decide(state, policy), state)
    assert checkpoint.is_dir()


def test_a_missing_file_makes_work_stale_where_a_stage_reads_it_and_a_touched_one_does_not(run):
    stage = began(run, words="words", notes="n")
    stage.finish()
    begin(SECOND, run).finish()
    words = stage.folder / "words.txt"
    os.utime(words, (1, 1))
    (stage.folder / "notes.txt").unlink()  # which nobody reads
    assert inspected(FIRST, run).fits and inspected(SECOND, run).fits
    words.unlink()
    (change,) = inspected(FIRST, run).changes
    assert re.fullmatch("missing file .*first/words.txt", str(change))


def test_a_newer_or_damaged_record_is_refused_in_words(run):
    path = finish_first(run).folder / "stage.json"
    for text, words in (('{"schema": 99}', "newer smallchat"), ('{"schema": 1,', "damaged or cannot be read")):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            Run(run).state("first")


IMPORTS = "import os, sys; from pathlib import Path; from nbutils.core.run import stage"
LOCKED, HOLD = "with stage.locked(run): print('in')", "stage.hold(run, 'another')"


def another_process(run, code):
    """One that runs this code, which knows `stage` and `run`."""
    line = [sys.executable, "-c", f"{IMPORTS}; run = Path({str(run)!r})\n{code}"]
    return subprocess.Popen(line, text=True, cwd=ROOT, stdin=PIPE, stdout=PIPE, stderr=STDOUT)


def said(run, code):
    """What another process prints, its last words on a failure included."""
    return another_process(run, code).communicate()[0]


def test_a_hand_run_notebook_respects_the_pipelines_lock(run):
    with locked(run), pytest.raises(UserError, match=rf"process {os.getpid()}.*is at work"):
        began(run)
    began(run)


def test_a_pipeline_waits_for_a_notebook_run_by_hand(run):
    """Held from the first cell to the last, a first cell run twice included; another notebook may go on beside it."""
    mine = re.escape(f"notebook 01_first.ipynb, process {os.getpid()} on ")
    stage = began(run)
    began(run)
    assert re.search(f"{mine}.*finish a notebook or shut its kernel down", said(run, LOCKED))
    assert said(run, HOLD) == "" and re.search(mine, said(run, LOCKED))  # the one that lives, not the last one
    later = another_process(run, f"{HOLD}; stage.let_go(run); print('let go', flush=True); sys.stdin.read()")
    assert later.stdout.readline() == "let go\n"
    with pytest.raises(UserError, match=mine), locked(run):  # not the one that has finished, and whose kernel lives on
        pass
    later.communicate()
    stage.finish()
    assert said(run, LOCKED) == "in\n"
    assert not list(run.glob(".*"))


def test_a_lock_that_its_last_owner_removes_meanwhile_is_taken_anew(run, monkeypatch):
    flock = fcntl.flock

    def once_it_is_gone(file, kind):
        monkeypatch.setattr(fcntl, "flock", flock)
        (run / ".lock").unlink()
        flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", once_it_is_gone)
    with locked(run):
        assert "is at work" in said(run, LOCKED)


def test_a_dead_kernel_holds_nothing(run):
    assert said(run, f"{HOLD}; os._exit(1)") == "" and list(run.glob(".owner-*"))
    with locked(run):
        pass
    assert not list(run.glob(".*"))


def test_by_hand_a_new_library_is_reported_too(run, capsys):
    record = began(run).finish("paused")
    change_record(run, versions=record["versions"] | {"torch": "1.0.0"})
    began(run)
    assert "first: its work so far was done with torch 1.0.0 (now " in capsys.readouterr().out


def test_beginning_by_hand_alone_forgets_an_old_pause_request(run, monkeypatch):
    run.mkdir()
    for by_pipeline in (False, True):
        if by_pipeline:
            monkeypatch.setenv("NBUTILS_PIPELINE", "mark")
        pause.request(run)
        began(run)
        assert pause.requested(run) is by_pipeline
