"""What a run executes, skips, keeps and refuses; notebooks are executed in this process, everything else is real."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.core.run import key, pause
from nbutils.core.run.stage import ALLOW_PAUSED, locked
from nbutils.pipeline.choice import Options, explain
from nbutils.pipeline.display import Display
from nbutils.pipeline.parameters import plan
from nbutils.pipeline.run import Job, Runner, StageFailed
from tests.pipeline.fake import STAGES, write_notebooks

ROOT = Path(__file__).resolve().parents[2]


class Pipeline:
    """The pipeline on a profile, with what it executed and said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.notebooks = write_notebooks(folder / "notebooks")
        self.profile = folder / "profile.yaml"
        self.profile.write_text(f"run_dir: '{self.run}'\n")
        self.said = ""
        self.executed: list[str] = []

    def go(self, *overrides: str, **options) -> list[str]:
        """Runs; returns the stages executed. The exit status is in `status`."""
        executed = self.executed = []
        out = io.StringIO()

        def execute(job: Job) -> None:
            executed.append(re.sub(r"^\d+_|\.ipynb$", "", job.source.name))
            in_process(job)

        try:
            run = Runner(plan(self.profile, list(overrides)), Options(**options), Display(out), execute)
            self.status = run.go()
        finally:
            self.said = out.getvalue()
        return executed

    def explained(self, *overrides: str, **options) -> dict[str, str]:
        out = io.StringIO()
        assert explain(plan(self.profile, list(overrides)), Options(**options), Display(out)) == 0
        return dict(line.split(": ", 1) for line in out.getvalue().splitlines())

    def long(self, stage: str) -> None:
        """Makes a stage's work an hour long."""
        path = self.run / stage / "stage.json"
        write_json(path, read_json(path) | {"work_seconds": 3600})


def in_process(job: Job) -> None:
    """Executes a notebook's cells here instead of in a kernel."""
    names: dict = {}
    os.environ.update({ALLOW_PAUSED: "1"} if job.options.allow_paused else {})
    try:
        _cells(job, names)
    finally:
        os.environ.pop(ALLOW_PAUSED, None)


def _cells(job: Job, names: dict) -> None:
    for cell in nbformat.read(job.source, as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= job.parameters


@pytest.fixture
def pipeline(tmp_path, monkeypatch) -> Pipeline:
    made = Pipeline(tmp_path)
    monkeypatch.setenv("NBUTILS_NOTEBOOKS", str(made.notebooks))
    monkeypatch.setattr("nbutils.core.stages.STAGES", STAGES)
    monkeypatch.setenv("NBUTILS_PIPELINE", "tests")  # the cells run in this process, which holds the lock
    return made


ALL = ["first", "second", "third"]


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
    "override,reruns",
    [
        ("note=new", []),
        ("step_seconds=0.001", []),
        ("words=4", ["first", "second"]),  # the model comes out the same, so that third has nothing new to read
        ("words=4 ", ["first", "second"]),
        ("seed=2", ["first", "second"]),
        ("learning_rate=0.5", ["second", "third"]),
        ("steps=4", ["second"]),
        ("title=new", ["third"]),
    ],
)
def test_each_parameter_reruns_what_depends_on_it(pipeline, override, reruns):
    pipeline.go()
    expected = pipeline.explained(override)
    assert pipeline.go(override) == reruns
    for name in ALL:
        assert (name in reruns) <= (expected[name].split(" ")[0] in ("run", "look"))
    assert pipeline.go(override) == []


def edit_cell(path: Path, old: str, new: str) -> None:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace(old, new)
    nbformat.write(notebook, path)


@pytest.mark.parametrize(
    "file,old,new,reruns",
    [
        ("01_first.ipynb", "stage.finish", "# done\nstage.finish", []),
        ("01_first.ipynb", "## Do it", "## Do something else", []),
        ("01_first.ipynb", "# number of words", "# how many words there are", []),
        ("01_first.ipynb", "words: int = 3", "words: int = 5", ["first", "second"]),
        ("01_first.ipynb", '"word "', '"Wort "', ["first", "second"]),
        ("01_first.ipynb", "wrote", "has written", ["first"]),
        ("02_second.ipynb", "steps'", "optimizer steps'", ["second"]),
        ("03_third.ipynb", "stage.finish()", "stage.finish(made='a report')", ["third"]),
    ],
)
def test_each_notebook_reruns_what_depends_on_it(pipeline, file, old, new, reruns):
    pipeline.go()
    edit_cell(pipeline.notebooks / file, old, new)
    assert pipeline.go() == reruns


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
    files = {
        "first/work.py": "def f():\n    raise UserError('words')\n",
        "second/page.jinja": "page",
        "first/display.py": "",
    }
    for file, content in files.items():
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


@pytest.mark.parametrize(
    "file,reruns", [("first/words.txt", ["second"]), ("second/final/model.txt", ["third"]), ("third/report.txt", [])]
)
def test_each_upstream_file_reruns_what_reads_it(pipeline, file, reruns):
    pipeline.go()
    (pipeline.run / file).write_text("changed by hand")
    assert pipeline.go() == reruns


def test_a_lost_file_is_made_again(pipeline):
    pipeline.go()
    (pipeline.run / "second/final/model.txt").unlink()
    assert "is missing" in pipeline.explained()["second"]
    assert pipeline.go() == ["second"]


def test_long_stale_work_stops_the_run_and_asks(pipeline):
    pipeline.go()
    pipeline.long("second")
    with pytest.raises(UserError, match=r"60 minutes.*learning_rate \(0.001 → 0.5\).*--accept.*--force"):
        pipeline.go("learning_rate=0.5")
    assert pipeline.explained("learning_rate=0.5")["second"].startswith("ask")
    assert (pipeline.run / "second/final/model.txt").read_text() == "model of rate 0.001"


def test_it_asks_before_an_earlier_stage_is_replaced(pipeline):
    pipeline.go()
    pipeline.long("second")
    with pytest.raises(UserError, match="learning_rate"):
        pipeline.go("words=4", "learning_rate=0.5")
    assert (pipeline.run / "first/words.txt").read_text() == "word " * 3


def test_accept_keeps_it_and_later_runs_agree(pipeline):
    pipeline.go()
    pipeline.long("second")
    assert pipeline.go("learning_rate=0.5", accept=True) == []
    assert pipeline.go("learning_rate=0.5") == []
    assert (pipeline.run / "second/final/model.txt").read_text() == "model of rate 0.001"


def test_force_sets_it_aside_and_leaves_the_rest_alone(pipeline):
    pipeline.go()
    pipeline.long("second")
    assert pipeline.go("learning_rate=0.5", force=True) == ["second", "third"]
    (aside,) = pipeline.run.glob("second-20*")
    assert (aside / "final/model.txt").read_text() == "model of rate 0.001"
    assert (pipeline.run / "second/final/model.txt").read_text() == "model of rate 0.5"
    assert pipeline.go("learning_rate=0.5", force=True) == []


def test_from_reruns_a_stage_and_all_later_and_sets_long_work_aside(pipeline):
    pipeline.go()
    pipeline.long("second")
    assert pipeline.explained(start="second")["first"].startswith("left as it is")
    assert pipeline.go(start="second") == ["second", "third"]
    assert len(list(pipeline.run.glob("second-20*"))) == 1


def test_only_runs_one_stage_on_what_is_there_and_warns_if_that_is_stale(pipeline):
    with pytest.raises(UserError, match=r"first does not exist: run notebooks/01_first.ipynb first"):
        pipeline.go(only="second")
    pipeline.go()
    assert pipeline.go("words=9", "learning_rate=0.5", only="second") == ["second"]
    assert re.search(r"Warning: first is used as it is.*words \(3 → 9\)", pipeline.said)
    assert pipeline.go("words=9", "learning_rate=0.5", only="second") == []
    assert "--force runs it again" in pipeline.said
    assert pipeline.go("words=9", "learning_rate=0.5", only="second", force=True) == ["second"]


def request_pause_at(monkeypatch, step: int) -> None:
    """A pause request that arrives while the stage is at that step."""
    seen = []

    def requested(run) -> bool:
        seen.append(run)
        return len(seen) == step

    monkeypatch.setattr(pause, "requested", requested)


def test_a_paused_run_says_how_far_it_is_and_goes_on(pipeline, monkeypatch):
    request_pause_at(monkeypatch, 2)
    assert pipeline.go("steps=4") == ["first", "second"]
    assert pipeline.status == 0
    assert "second is paused at 50 % (step 2): run the same command again to go on. third wait" in pipeline.said
    assert pipeline.explained("steps=4")["second"].startswith("resume (paused at 50 %")
    assert pipeline.go("steps=4") == ["second", "third"]
    assert pipeline.go("steps=4") == []


def test_allow_paused_runs_later_stages_on_the_newest_checkpoint(pipeline, monkeypatch):
    request_pause_at(monkeypatch, 2)
    pipeline.go("steps=4")
    assert pipeline.go("steps=4", allow_paused=True) == ["third"]
    assert (pipeline.run / "third/report.txt").read_text() == "reportcheckpoint"
    assert pipeline.go("steps=4") == ["second", "third"]
    assert (pipeline.run / "third/report.txt").read_text() == "reportmodel of rate 0.001"


def test_a_stage_that_stays_paused_says_how_far_it_is_and_how_to_go_on(pipeline, monkeypatch):
    request_pause_at(monkeypatch, 2)
    pipeline.go("steps=4")
    words = "second is paused at 50 % (step 2): run again without --allow-paused to go on with it."
    assert pipeline.go("steps=4", only="second", allow_paused=True) == []
    assert words in pipeline.said and "done already" not in pipeline.said
    assert pipeline.go("steps=4", allow_paused=True) == ["third"]
    assert words in pipeline.said and pipeline.status == 0


def test_a_pause_under_allow_paused_says_how_to_go_on(pipeline, monkeypatch):
    request_pause_at(monkeypatch, 2)
    assert pipeline.go("steps=4", allow_paused=True) == ALL
    assert "run again without --allow-paused to go on with it." in pipeline.said


@pytest.mark.parametrize("status", ["paused", "running"])
def test_from_makes_unfinished_work_anew_and_sets_its_checkpoints_aside(pipeline, monkeypatch, status):
    request_pause_at(monkeypatch, 2)
    pipeline.go("steps=4")
    record = pipeline.run / "second/stage.json"
    write_json(record, read_json(record) | {"status": status})
    assert pipeline.go("steps=4", start="second") == ["second", "third"]
    assert "second: set the earlier work aside" in pipeline.said
    assert len(list(pipeline.run.glob("second-20*/checkpoints/step-000002"))) == 1


def test_a_pause_under_from_does_not_send_one_back_to_the_start(pipeline, monkeypatch):
    """The same command would begin the stage anew: the last sentence says to leave --from out, and that goes on."""
    assert pipeline.go("steps=4", only="first") == ["first"]
    request_pause_at(monkeypatch, 2)
    assert pipeline.go("steps=4", start="second") == ["second"]
    assert "Leave out --from then: with it the stage starts again." in pipeline.said
    assert pipeline.go("steps=4") == ["second", "third"]
    assert (pipeline.run / "second/checkpoints/step-000002").is_dir()


def test_a_pause_with_other_settings_asks_and_can_be_set_aside(pipeline, monkeypatch):
    request_pause_at(monkeypatch, 2)
    pipeline.go("steps=4")
    with pytest.raises(UserError, match="learning_rate"):
        pipeline.go("steps=4", "learning_rate=0.5")
    with pytest.raises(UserError, match="cannot be continued"):
        pipeline.go("steps=4", "learning_rate=0.5", accept=True)
    assert pipeline.go("steps=4", "learning_rate=0.5", force=True) == ["second", "third"]
    assert len(list(pipeline.run.glob("second-20*/checkpoints/step-000002"))) == 1


def test_a_new_library_is_reported_and_reruns_nothing(pipeline):
    pipeline.go()
    path = pipeline.run / "second/stage.json"
    record = read_json(path)
    record["versions"]["torch"] = "1.0.0"
    write_json(path, record)
    assert pipeline.go() == []
    assert re.search(r"second was made with torch 1\.0\.0 \(now .*\); nothing is rerun", pipeline.said)


@pytest.mark.parametrize("status", ["paused", "running"])
def test_a_new_library_is_reported_where_work_goes_on_with_it(pipeline, monkeypatch, status):
    request_pause_at(monkeypatch, 2)
    pipeline.go("steps=4")
    path = pipeline.run / "second/stage.json"
    record = read_json(path) | {"status": status}
    record["versions"]["torch"] = "1.0.0"
    write_json(path, record)
    assert pipeline.go("steps=4") == ["second", "third"]
    assert re.search(r"second was made with torch 1\.0\.0 \(now .*\); nothing is rerun", pipeline.said)


def test_what_was_accepted_is_remembered_where_work_goes_on(pipeline, monkeypatch):
    request_pause_at(monkeypatch, 2)
    pipeline.go("steps=4")
    edit_cell(pipeline.notebooks / "02_second.ipynb", "steps'", "optimizer steps'")
    assert pipeline.go("steps=4", accept=True) == ["second", "third"]
    (accepted,) = read_json(pipeline.run / "second/stage.json")["accepted"]
    assert accepted["changed"] == ["the notebook's code cells"]
    assert pipeline.go("steps=5", force=True) == ["second"]
    assert "accepted" not in read_json(pipeline.run / "second/stage.json")


def test_an_error_after_the_stage_has_finished_is_said(pipeline):
    def failing(job: Job) -> None:
        in_process(job)
        if job.source.name.startswith("02"):
            raise StageFailed("02_second.ipynb, cell In [5] raised ZeroDivisionError: division by zero.")

    out = io.StringIO()
    assert Runner(plan(pipeline.profile, []), Options(), Display(out), failing).go() == 0
    said = out.getvalue()
    assert "second is done, but after stage.finish() 02_second.ipynb, cell In [5] raised ZeroDivisionError" in said


def test_a_signal_as_a_stage_completes_ends_the_run_with_its_number(pipeline):
    def interrupted(job: Job) -> None:
        in_process(job)
        os.kill(os.getpid(), signal.SIGTERM)

    out = io.StringIO()
    assert Runner(plan(pipeline.profile, []), Options(), Display(out), interrupted).go() == 128 + signal.SIGTERM
    assert "Stopped before second; run the same command again to go on." in out.getvalue()
    assert pipeline.go() == ["second", "third"]


def test_work_that_cannot_be_set_aside_is_said_in_a_sentence(pipeline, monkeypatch):
    pipeline.go()
    pipeline.long("second")

    def rename(self: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match=r"run/second cannot be changed \(Permission denied\)"):
        pipeline.go("learning_rate=0.5", force=True)


@pytest.mark.parametrize(
    "text,words",
    [
        (
            "learning_rat: 0.1",
            ["line 2", "no notebook has a parameter 'learning_rat'", "Did you mean 'learning_rate'?"],
        ),
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
        ("02_second.ipynb", "steps: int = 3 ", "steps: int = 3 0 ", "02_second.ipynb, code cell 1, line 4: "),
        ("01_first.ipynb", "seed: int = 1 ", "%env A=1\nseed: int = 1 ", "01_first.ipynb, code cell 1, line 2: "),
        ("03_third.ipynb", "stage.finish()", "stage.finish((", "03_third.ipynb, code cell 4, line 1: "),
    ],
)
def test_a_typo_in_a_later_notebook_stops_before_the_first(pipeline, file, old, new, words):
    edit_cell(pipeline.notebooks / file, old, new)
    with pytest.raises(UserError, match=re.escape(words)):
        pipeline.go()
    assert not pipeline.run.exists()


def test_magics_are_left_to_the_kernel(pipeline):
    edit_cell(pipeline.notebooks / "03_third.ipynb", "stage.finish()", "%matplotlib inline\nstage.finish()")
    assert "run" in pipeline.explained()["third"]


def test_an_unknown_stage_is_refused(pipeline):
    with pytest.raises(UserError, match=r"no stage 'secnd'.*Did you mean 'second'"):
        pipeline.go(only="secnd")


def test_text_in_yaml_reaches_the_stage_as_a_number(pipeline):
    pipeline.profile.write_text(pipeline.profile.read_text() + "learning_rate: 1e-5\ntitle: no\n")
    pipeline.go()
    assert (pipeline.run / "third/report.txt").read_text() == "nomodel of rate 1e-05"


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
