"""A session's notebook behind its first cell: earlier work under other settings, failures, its end, the forecast."""

import shutil
import time
from contextlib import nullcontext
from unittest.mock import Mock

import nbformat
import pytest
from papermill import PapermillExecutionError, execute_notebook

from nbutils.core.errors import UserError
from nbutils.core.files import append_jsonl, kaggle_root, read_json, resolve, sha256_of_json, write_json
from nbutils.core.run.decide import inspect
from nbutils.core.run.key import key_parts
from nbutils.core.run.layout import Run
from nbutils.core.stages import spec
from nbutils.kaggle.carry_over import best, continues
from nbutils.kaggle.notebook_session import Session, forecast, too_late
from nbutils.kaggle.packages import WHOLE
from nbutils.kaggle.start import Bundle, Environment
from nbutils.pipeline.parameters import settings_of
from tests.kaggle.made_stages import stage_at

pytestmark = pytest.mark.usefixtures("place")
NAMES = {"run_dir": "runs/mine", "learning_rate": 0.003}
TRAIN = spec("train")


def trained(status, seconds=5.0, **changes):
    """The training of an earlier session, as it would be in the run folder, with these settings but for `changes`."""
    settings = settings_of(TRAIN, NAMES | changes)
    parts = key_parts(TRAIN, settings)
    steps = [] if status == "done" else [10]
    return stage_at(settings.run_path, status, *steps, key=sha256_of_json(parts), parts=parts, work_seconds=seconds)


def kept(folder, stale):
    """Whether earlier work is gone on with."""
    state = inspect(TRAIN, settings_of(TRAIN, NAMES))
    return continues(best([folder.parent], "train", {}), state, stale, in_pipeline=False)


@pytest.mark.parametrize(
    "status,seconds,rate,stale,stays",
    [
        *((status, 5000, 0.003, "", True) for status in ("done", "paused", "running")),
        ("done", 5000, 0.1, "accept", True),
        ("done", 5000, 0.1, "force", False),
        ("done", 5, 0.1, "", False),  # seconds of work
    ],
)
def test_what_fits_stays_and_what_does_not_as_the_bundle_says(status, seconds, rate, stale, stays):
    folder = trained(status, seconds, learning_rate=rate)
    assert kept(folder, stale) is stays is folder.exists()
    assert not stays or kept(folder, "")  # accepted once, it fits


@pytest.mark.parametrize("status,words", [("paused", r"step 10.*"), ("done", r".*--accept.*")])
def test_long_or_unfinished_work_of_other_settings_stops_the_session(place, status, words):
    """Before anything is run."""
    folder = trained(status, 5000, learning_rate=0.1)
    shutil.move(folder.parent, place / "input" / "it" / "mine")
    with pytest.raises(UserError, match=rf"{words}--force") as raised:
        session().resume(NAMES)
    assert "learning_rate (0.1 → 0.003)" in str(raised.value)
    assert ("--accept" in str(raised.value)) is (status == "done")  # other checkpoints cannot be continued
    assert not (folder.parent / "kaggle.jsonl").exists()


# A session


def session(stage="train", stale=""):
    where = Environment(kaggle_root(), "Batch", False, ())
    made = Session(Bundle("me", "mine", "mine.yaml", stage, stale=stale), where)
    made.run, made.names = Run(resolve("runs/mine")), NAMES
    return made


@pytest.mark.parametrize("stage", ["train", WHOLE])
def test_a_failure_is_published_as_one_though_the_brought_record_says_paused(capsys, stage):
    trained("paused")
    made = session(stage)
    assert made.keep_output(UserError("no room")) is True
    for record in (made.run.record("train"), read_json(made.run.path / "session.json")):
        assert (record["status"], record["error"]) == ("failed", "no room")
    assert "\033[1;31m" in capsys.readouterr().out


@pytest.mark.parametrize("trouble", ["full disk", "damaged record"])
def test_a_failure_that_cannot_be_marked_costs_no_output_either(capsys, monkeypatch, trouble):
    folder = trained("paused")
    if trouble == "full disk":
        full = Mock(side_effect=OSError(28, "No space left on device"))
        monkeypatch.setattr("nbutils.core.run.record.write_text", full)
    else:
        (folder / "stage.json").write_text("{")
    assert session().keep_output(UserError("it broke")) is True
    said = capsys.readouterr().out
    assert "Note: " in said and "what it made so far is kept" in said


def test_a_pipeline_that_fails_ends_the_session_with_its_last_sentence():
    with pytest.raises(UserError, match=r"ended with status 1: .*learning_rate"):
        session(WHOLE).run_all(NAMES | {"learning_rate": -1})


@pytest.mark.parametrize("status,steps", [("done", []), ("paused", [10_000])])
def test_the_mirror_is_asked_where_what_is_attached_does_not_fit(place, tmp_path_factory, status, steps):
    """`--force` after the data changed: the new run, in the mirror alone, is not lost for the old one's sake."""
    held = tmp_path_factory.mktemp("held")
    shutil.move(trained("running").parent, held / "mine")
    parts = key_parts(TRAIN, settings_of(TRAIN, NAMES)) | {"upstream": {"data/train/x": "old"}}
    stage_at(place / "input" / "mine", status, *steps, parts=parts, key=sha256_of_json(parts))
    made = session(stale="force")
    made.mirror = Mock(fetch=Mock(return_value=held))
    made.bring_earlier()
    assert made.continued.step == 10
    made.mirror.fetch.assert_called_with("mine", 0)


@pytest.mark.parametrize(
    "stage,waits,status", [("train", "", "done"), (WHOLE, "", "running"), (WHOLE, "evaluate waits.", "paused")]
)
def test_the_end_of_a_session_is_noted(stage, waits, status):
    trained("done")
    made = session(stage)
    made.waits = waits
    made.close()
    assert read_json(made.run.path / "session.json")["status"] == status


def test_the_evaluation_waits_where_little_of_the_budget_is_left(monkeypatch):
    for used, waits in ((59, False), (61, True)):
        monkeypatch.setenv("NBUTILS_STARTED", str(time.time() - 60 * used))
        assert bool(too_late(100)) is waits and too_late(0) == ""


@pytest.mark.parametrize("word,shown", [("keep", "ValueError: keep"), ("fatal", '"ename": "ValueError"')])
def test_a_kept_failure_is_red_and_costs_no_version(tmp_path, word, shown):
    """Guard in a real kernel, executed by papermill. A failure that nobody keeps is one, and no cell is passed over."""
    cells = [
        "from nbutils.kaggle.guard import Guard\nguard = Guard(get_ipython(), lambda error: 'keep' in str(error))",
        "'a value'",
        f"raise ValueError('{word}')",
        "print('never' + 'reached')",
        "# session.resume(\nprint('begun' + 'again')",
    ]
    book, out = tmp_path / "in.ipynb", tmp_path / "out.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), book)
    kept = word == "keep"
    with nullcontext() if kept else pytest.raises(PapermillExecutionError):
        execute_notebook(book, out, kernel_name="python3", progress_bar=False)
    said = out.read_text()
    assert shown in said and "neverreached" not in said and "'a value'" in said
    assert ("begunagain" in said) is kept is ("passed over" in said.replace("print('passed over')", ""))


def test_the_forecast_counts_all_of_the_data_and_all_passes(tmp_path):
    run, log = Run(tmp_path), tmp_path / "train" / "metrics.jsonl"
    assert forecast(run) == ""
    summary = {"train": {"tokens": 4_000_000}, "datasets": [{"rows": 4_600, "rows_in_source": 460_000}]}
    write_json(run.rows / "summary.json", summary)
    write_json(run.training / "settings.json", {"settings": {"epochs": 3}})
    append_jsonl(log, {"kind": "eval"})
    assert forecast(run) == ""
    for speed in (1, 1, 1, 20_000, 22_000, 24_000):
        append_jsonl(log, {"kind": "train", "tokens_per_second": speed})
    assert "At 22,000 tokens a second, the training steps of the full run (1,200.0 million tokens)" in forecast(run)
    assert "15.2 GPU-hours in 2 sessions, 51% of the 30 hours that Kaggle gives a week. Eval" in forecast(run)
    fastest = {"setting": "a=1", "values": {"a": 1}, "tokens_per_second": 44_000}
    write_json(run.path / "tune.json", {"schema": 1, "fastest": fastest})
    assert "the fastest settings (a=1), at 44,000: about 7.6 GPU-hours in 1 session, 25% of" in forecast(run)
    write_json(run.path / "tune.json", {"schema": 1, "fastest": fastest | {"setting": "as it is", "values": {}}})
    assert "fastest" not in forecast(run)
