"""A stage run by hand: its guard, its record, and work that is never thrown away by accident."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.core.run import pause
from nbutils.core.run.decide import Policy, carry_out, decide, inspect, set_aside
from nbutils.core.run.layout import Run
from nbutils.core.run.record import read_record
from nbutils.core.run.stage import Stage, locked
from nbutils.core.run.state import State
from tests.pipeline.fake import STAGES, FirstSettings, SecondSettings, write_notebooks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("NBUTILS_NOTEBOOKS", str(write_notebooks(tmp_path / "notebooks")))
    monkeypatch.setattr("nbutils.core.stages.STAGES", STAGES)
    return tmp_path / "run"


def first(run, **changed) -> FirstSettings:
    return FirstSettings.checked({"run_dir": str(run), "seed": 1, "words": 3, "note": ""} | changed)


def second(run, **changed) -> SecondSettings:
    values = {"run_dir": str(run), "seed": 1, "learning_rate": 0.1, "steps": 2, "step_seconds": 0.0, "fault": ""}
    return SecondSettings.checked(values | changed)


def finish_first(run, **changed) -> Stage:
    stage = Stage.begin("first", first(run, **changed))
    (stage.folder / "words.txt").write_text("words")
    stage.finish(made="some words")
    return stage


def began_long_ago(run, name: str, seconds: float) -> None:
    """Makes a stage's record say that its work took that long."""
    path = run / name / "stage.json"
    write_json(path, read_json(path) | {"work_seconds": seconds})


def test_a_finished_stage_says_what_it_read_and_made(run):
    finish_first(run)
    stage = Stage.begin("second", second(run))
    (stage.folder / "final").mkdir()
    (stage.folder / "final" / "model.txt").write_text("m")
    record = stage.finish(steps=2)
    assert read_json(stage.folder / "stage.json") == json.loads(json.dumps(record))
    assert record["status"] == "done"
    assert list(record["inputs"]) == ["first/words.txt"]
    assert record["outputs"]["final/model.txt"]["bytes"] == 1
    assert record["facts"] == {"steps": 2}
    assert read_json(run / "run.json")["parameters"]["learning_rate"] == 0.1


def test_a_finished_stage_that_is_opened_again_keeps_where_it_came_from(run, monkeypatch):
    made = finish_first(run)
    before = read_json(made.folder / "stage.json")
    monkeypatch.setattr("nbutils.core.run.record.versions", lambda: {"torch": "99"})
    monkeypatch.setattr("nbutils.core.run.record.git_commit", lambda: "c" * 40)
    stage = Stage.begin("first", first(run))
    record = stage.finish(made="some words")
    for name in ("started", "versions", "git_commit"):
        assert record[name] == before[name], name
    stage = Stage.begin("first", first(run))
    (stage.folder / "words.txt").write_text("other words")
    assert stage.finish()["git_commit"] == "c" * 40


def test_a_stage_whose_record_alone_is_missing_is_told_so(run):
    (finish_first(run).folder / "stage.json").unlink()
    with pytest.raises(UserError, match=r"first/stage.json is missing: run notebooks/01_first.ipynb first"):
        Stage.begin("second", second(run))


def test_a_missing_upstream_stage_names_its_notebook(run):
    with pytest.raises(UserError, match=r"first does not exist: run notebooks/01_first.ipynb first"):
        Stage.begin("second", second(run))
    Stage.begin("first", first(run))
    with pytest.raises(UserError, match="is not finished"):
        Stage.begin("second", second(run))


def test_short_work_with_another_key_is_cleared_and_a_steering_change_keeps_it(run):
    finish_first(run)
    assert inspect(STAGES[0], first(run, note="something else")).fits
    stage = Stage.begin("first", first(run, words=4))
    assert sorted(path.name for path in stage.folder.iterdir()) == ["stage.json"]


def test_long_work_asks_and_nothing_is_touched(run):
    finish_first(run)
    began_long_ago(run, "first", 3000)
    before = (run / "first" / "stage.json").read_text()
    with pytest.raises(UserError) as error:
        Stage.begin("first", first(run, words=4))
    assert "50 minutes" in str(error.value) and "words (3 → 4)" in str(error.value)
    assert "--accept" in str(error.value) and "--force" in str(error.value)
    assert (run / "first" / "stage.json").read_text() == before
    assert (run / "first" / "words.txt").exists()


def test_work_of_a_killed_stage_counts_by_its_newest_file(run):
    stage = Stage.begin("first", first(run))
    (stage.folder / "half.txt").write_text("h")
    later = time.time() + 3600
    os.utime(stage.folder / "half.txt", (later, later))
    assert inspect(STAGES[0], first(run, words=4)).protected
    assert inspect(STAGES[0], first(run)).state is State.RUNNING


def test_seconds_of_interrupted_sessions_add_up(run):
    stage = Stage.begin("first", first(run))
    stage.finish("paused", step=1, fraction=0.5)
    began_long_ago(run, "first", 400)
    assert Stage.begin("first", first(run)).finish()["work_seconds"] >= 400


def test_unfinished_checkpoints_ask_however_short_the_work(run):
    finish_first(run)
    stage = Stage.begin("second", second(run))
    (stage.folder / "checkpoints" / "step-000001").mkdir(parents=True)
    with pytest.raises(UserError, match="learning_rate"):
        Stage.begin("second", second(run, learning_rate=0.2))
    Stage.begin("second", second(run))
    assert (stage.folder / "checkpoints" / "step-000001").is_dir()


def test_accept_keeps_finished_work_and_remembers_why(run):
    finish_first(run)
    began_long_ago(run, "first", 3000)
    changed = first(run, words=4)
    carry_out(decide(inspect(STAGES[0], changed), Policy(accept=True)), inspect(STAGES[0], changed))
    assert inspect(STAGES[0], changed).fits
    assert read_json(run / "first" / "stage.json")["accepted"][0]["changed"] == ["parameter words (3 → 4)"]


def test_accept_refuses_checkpoints_of_other_settings(run):
    finish_first(run)
    stage = Stage.begin("second", second(run))
    (stage.folder / "checkpoints" / "step-000001").mkdir(parents=True)
    changed = second(run, learning_rate=0.2)
    with pytest.raises(UserError, match=r"learning_rate \(0.1 → 0.2\).*cannot be continued"):
        carry_out(decide(inspect(STAGES[1], changed), Policy(accept=True)), inspect(STAGES[1], changed))


def test_set_aside_renames_with_a_date_and_deletes_nothing(run):
    finish_first(run)
    places = [set_aside(run / "first")]
    finish_first(run)
    places.append(set_aside(run / "first"))
    assert len(set(places)) == 2
    assert all((place / "words.txt").read_text() == "words" for place in places)
    assert not (run / "first").exists()


def test_a_changed_or_missing_upstream_file_makes_the_right_stage_stale(run):
    finish_first(run)
    Stage.begin("second", second(run)).finish()
    words = run / "first" / "words.txt"
    os.utime(words, (1, 1))
    assert inspect(STAGES[1], second(run)).fits
    words.write_text("other words")
    assert [str(change) for change in inspect(STAGES[1], second(run)).changes] == ["upstream file first/words.txt"]
    assert inspect(STAGES[0], first(run)).fits
    words.unlink()
    assert "words.txt is missing" in str(inspect(STAGES[0], first(run)).changes[0])


def test_a_file_that_nobody_reads_may_go(run):
    stage = Stage.begin("first", first(run))
    (stage.folder / "words.txt").write_text("w")
    (stage.folder / "notes.txt").write_text("n")
    stage.finish()
    (stage.folder / "notes.txt").unlink()
    assert inspect(STAGES[0], first(run)).fits


def test_a_paused_stage_may_be_read_only_where_that_is_allowed(run, monkeypatch):
    stage = Stage.begin("first", first(run))
    (stage.folder / "words.txt").write_text("so far")
    stage.finish("paused")
    with pytest.raises(UserError, match="is paused"):
        Stage.begin("second", second(run))
    monkeypatch.setenv("NBUTILS_ALLOW_PAUSED", "1")
    assert Stage.begin("second", second(run)).before.parts["upstream"]


def test_a_paused_training_offers_its_newest_whole_checkpoint(tmp_path):
    assert Run(tmp_path).model() == tmp_path / "train" / "final"
    for step in ("000200", "001000", "000400"):
        (tmp_path / "train" / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (tmp_path / "train" / "checkpoints" / f"step-{step}" / "manifest.json").touch()
    (tmp_path / "train" / "checkpoints" / "step-002000.partial").mkdir()
    write_json(tmp_path / "train" / "stage.json", {"schema": 1, "status": "paused", "facts": {}})
    assert Run(tmp_path).model().name == "step-001000"


def test_a_newer_damaged_or_unreadable_record_is_refused_in_words(run):
    finish_first(run)
    path = run / "first" / "stage.json"
    write_json(path, {"schema": 99})
    with pytest.raises(UserError, match="newer smallchat"):
        Run(run).state("first")
    path.write_text('{"schema": 1,')
    with pytest.raises(UserError, match="damaged"):
        read_record(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_record(path)
    assert read_record(run / "run.json" / "stage.json") is None


def test_a_hand_run_notebook_respects_the_pipelines_lock(run):
    with locked(run), pytest.raises(UserError, match=rf"process {os.getpid()}.*is at work"):
        Stage.begin("first", first(run))
    Stage.begin("first", first(run))


def in_another_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_a_pipeline_waits_for_a_notebook_run_by_hand(run):
    """Held from the first cell to the last, a first cell run twice included; another notebook may go on beside it."""
    held = f"with stage.locked(Path({str(run)!r})): print('in')"
    pipeline = f"from pathlib import Path; from nbutils.core.run import stage\n{held}"
    stage = Stage.begin("first", first(run))
    Stage.begin("first", first(run))
    refused = in_another_process(pipeline)
    assert refused.returncode == 1
    assert f"notebook 01_first.ipynb, process {os.getpid()} on " in refused.stderr
    assert "finish a notebook or shut its kernel down" in refused.stderr
    beside = f"from pathlib import Path; from nbutils.core.run import stage; stage.hold(Path({str(run)!r}), 'another')"
    assert in_another_process(beside).returncode == 0
    assert f"process {os.getpid()} on " in in_another_process(pipeline).stderr  # the one that lives, not the last one
    (stage.folder / "words.txt").write_text("words")
    stage.finish()
    assert in_another_process(pipeline).stdout == "in\n"
    assert not list(run.glob(".*"))


def test_the_notebook_that_is_named_has_not_finished(run):
    """Two kernels hold the run folder; the one that came later finishes, and its kernel lives on."""
    code = (
        f"import sys; from pathlib import Path; from nbutils.core.run import stage; run = Path({str(run)!r})\n"
        "stage.hold(run, 'the later one'); stage.let_go(run); print('let go', flush=True); sys.stdin.read()"
    )
    Stage.begin("first", first(run))
    later = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert later.stdout is not None and later.stdout.readline() == b"let go\n"
    with pytest.raises(UserError, match=rf"notebook 01_first.ipynb, process {os.getpid()} on "), locked(run):
        pass
    later.communicate()


def test_a_dead_kernel_holds_nothing(run):
    hold = f"from pathlib import Path; from nbutils.core.run import stage; stage.hold(Path({str(run)!r}), 'n')"
    hold += "; import os; os._exit(1)"
    assert in_another_process(hold).returncode == 1 and list(run.glob(".owner-*"))
    with locked(run):
        pass


def test_a_beginning_that_fails_holds_nothing(run):
    finish_first(run)
    began_long_ago(run, "first", 3000)
    with pytest.raises(UserError, match="50 minutes"):
        Stage.begin("first", first(run, words=4))
    with locked(run):
        pass


def test_by_hand_a_new_library_is_reported_too(run, capsys):
    Stage.begin("first", first(run)).finish("paused")
    path = run / "first" / "stage.json"
    record = read_json(path)
    record["versions"]["torch"] = "1.0.0"
    write_json(path, record)
    Stage.begin("first", first(run))
    assert "first: its work so far was done with torch 1.0.0 (now " in capsys.readouterr().out


def test_beginning_by_hand_forgets_an_old_pause_request(run, monkeypatch):
    pause.request(run)
    Stage.begin("first", first(run))
    assert not pause.requested(run)
    monkeypatch.setenv("NBUTILS_PIPELINE", "mark")
    pause.request(run)
    Stage.begin("first", first(run))
    assert pause.requested(run)
