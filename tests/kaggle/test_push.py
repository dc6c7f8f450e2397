"""`kaggle push` with the real `kaggle` package against an API on loopback."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.kaggle.account import signed_in
from nbutils.kaggle.push import Pusher, bundle_folders
from tests.conftest import ROOT
from tests.kaggle.fake_kaggle import FakeKaggle
from tests.kaggle.simulated import bundles

kaggle_env = pytest.importorskip("kagglesdk.kaggle_env")
TRAIN = "someone/smallchat-small-02-train-sft"
DATA = "someone/smallchat-small-01-filter-data"
WHOLE = "someone/smallchat-small-whole-pipeline"


@pytest.fixture
def kaggle(monkeypatch, tmp_path) -> Iterator[FakeKaggle]:
    server = FakeKaggle()
    for name in ("push.POLL_SECONDS", "account.FIRST_PAUSE"):
        monkeypatch.setattr(f"nbutils.kaggle.{name}", 0.01)
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, server.url)
    monkeypatch.setenv("KAGGLE_USERNAME", "someone")
    monkeypatch.setenv("KAGGLE_KEY", "k" * 32)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    yield server
    server.close()


@pytest.fixture(scope="module")
def bundled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    bundles(ROOT / "tests" / "kaggle" / "small.yaml", folder)
    return folder


@pytest.fixture
def made(bundled, tmp_path) -> Path:
    """Bundles that were never pushed."""
    return shutil.copytree(bundled, tmp_path / "made")


def push(folder: Path, follow: bool, patience: float = 0.1) -> list[str]:
    """What was said."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setattr("nbutils.kaggle.account.PATIENCE_SECONDS", patience)
        Pusher(signed_in(), follow).push_all(bundle_folders(folder))
    return said.getvalue().splitlines()


def pushes(kaggle: FakeKaggle) -> list[str]:
    """The ends of the names that were pushed."""
    return [line.split()[1].rsplit("small-")[1] for line in kaggle.log if line.startswith("push")]


def test_all_are_pushed_in_order_and_what_paused_is_pushed_again(kaggle, made):
    kaggle.plan[TRAIN] = ["paused", "paused", "done"]
    push(made, follow=True)
    assert pushes(kaggle) == [
        *("01-filter-data", "02-train-sft", "02-train-sft", "02-train-sft"),
        *("03-plot-metrics", "04-evaluate", "05-chat", "06-publish"),
    ]
    versions = kaggle.versions[TRAIN]
    assert [version["kernelDataSources"] for version in versions] == [[DATA], [DATA, TRAIN], [DATA, TRAIN]]
    assert versions[0]["machineShape"] == "NvidiaTeslaT4" and versions[0]["isPrivate"] is True
    assert "ARCHIVE" in json.loads(versions[0]["text"])["cells"][1]["source"]
    output = made / "smallchat-small-02-train-sft" / "output" / "runs" / "mine" / "train"
    assert (output / "final" / "model.safetensors").read_text() == "weights"
    assert not (output / "checkpoints").exists()
    assert read_json(made / "smallchat-small-02-train-sft" / "kernel-metadata.json")["kernel_sources"][1] == TRAIN


def test_without_follow_later_notebooks_wait_for_a_finished_training(kaggle, made):
    kaggle.plan[TRAIN] = ["paused"]
    with pytest.raises(UserError, match=r"02-train-sft is paused.*--follow"):
        push(made, follow=False)
    assert [line for line in kaggle.log if line.startswith("push")] == [f"push {DATA}", f"push {TRAIN}"]


def test_one_bundle_needs_its_upstream(kaggle, made):
    with pytest.raises(UserError, match="01-filter-data is not on Kaggle yet"):
        push(made / "smallchat-small-02-train-sft", follow=False)
    assert not kaggle.versions


def test_inputs_that_kaggle_does_not_know_stop_the_push(kaggle, made, monkeypatch):
    monkeypatch.setattr(Pusher, "_upstream", lambda *_: None)  # the upstream notebook goes after we have looked
    with pytest.raises(UserError, match=r"does not know these kernel inputs.*02-train-sft"):
        push(made / "smallchat-small-03-plot-metrics", follow=True)


def test_a_version_that_runs_without_its_inputs_is_never_taken_for_this_bundles(kaggle, made, monkeypatch):
    monkeypatch.setattr(Pusher, "_upstream", lambda *_: None)
    for _ in range(2):
        with pytest.raises(UserError, match="does not know these kernel inputs"):
            push(made / "smallchat-small-03-plot-metrics", follow=True)
    assert pushes(kaggle) == ["03-plot-metrics"] * 2


def test_an_unclear_answer_costs_no_earlier_session(kaggle, made, monkeypatch):
    """Kaggle says of a notebook that is not there what it also says in a bad moment."""
    kaggle.plan[TRAIN] = ["paused", "done"]
    pushing = Pusher._push

    def in_a_bad_moment(self, folder, facts, mark):
        with monkeypatch.context() as moment:
            moment.setattr(self.account, "status", lambda address: None)
            pushing(self, folder, facts, mark)

    monkeypatch.setattr(Pusher, "_push", in_a_bad_moment)
    push(made, follow=True)
    assert [version["kernelDataSources"] for version in kaggle.versions[TRAIN]] == [[DATA], [DATA, TRAIN]]


def test_the_same_command_goes_on_where_it_was_cut_off(kaggle, made, monkeypatch):
    kaggle.plan[TRAIN] = ["paused"]
    with monkeypatch.context() as cut, pytest.raises(KeyboardInterrupt):
        cut.setattr(Pusher, "_download", interrupted_at("train"))
        push(made, follow=True)
    assert pushes(kaggle) == ["01-filter-data", "02-train-sft", "02-train-sft"]

    kaggle.looks[TRAIN] = 0  # the second session is still running
    said = push(made, follow=True)
    assert pushes(kaggle)[3:] == ["03-plot-metrics", "04-evaluate", "05-chat", "06-publish"]
    assert any("01-filter-data: version 1 is done, and nothing has changed" in line for line in said)
    assert any("02-train-sft is under way already" in line for line in said)

    book = next((made / "smallchat-small-02-train-sft").glob("*.ipynb"))
    book.write_text(book.read_text() + "\n")  # another bundle: it runs again, and all that reads it
    push(made, follow=True)
    again = ["02-train-sft", "03-plot-metrics", "04-evaluate", "05-chat", "06-publish"]
    assert pushes(kaggle)[7:] == again and pushes(kaggle).count("01-filter-data") == 1


def interrupted_at(name: str):
    """A download that is cut off for one notebook."""

    def download(self, folder: Path, address: str) -> None:
        if name in address:
            raise KeyboardInterrupt

    return download


def test_a_hiccup_is_waited_out(kaggle, made):
    kaggle.failing = 4
    said = push(made / "smallchat-small-01-filter-data", follow=True, patience=30)
    assert pushes(kaggle) == ["01-filter-data"] and sum("trying again" in line for line in said) == 1


def test_a_notebook_of_which_kaggle_shows_nothing_ends_the_waiting(kaggle, made):
    kaggle.hidden.add(DATA)
    with pytest.raises(UserError, match=r"shows no session of .*01-filter-data.*credentials.*--owner"):
        push(made, follow=True)


def test_the_whole_pipeline_is_pushed_until_all_of_it_is_done(kaggle, made):
    kaggle.plan[WHOLE] = ["paused", "paused"]  # stopped before the evaluation: no stage's record says so
    push(made / "smallchat-small-whole-pipeline", follow=True)
    assert pushes(kaggle) == ["whole-pipeline"] * 3
    kaggle.plan[WHOLE] = [*["done"] * 3, "failed"]
    (made / "smallchat-small-whole-pipeline" / "pushed.json").unlink()  # as from another machine
    with pytest.raises(UserError, match=r"whole-pipeline completed, but it is not done .*failed: it broke"):
        push(made / "smallchat-small-whole-pipeline", follow=True)


@pytest.mark.parametrize("status,words", [("running", "says running"), ("nothing", "has no session.json")])
def test_an_output_without_a_finished_stage_is_not_done(kaggle, made, status, words):
    kaggle.plan[TRAIN] = [status]
    with pytest.raises(UserError, match=rf"02-train-sft completed, but it is not done \(its output {words}"):
        push(made, follow=True)


def test_what_the_kaggle_package_refuses_is_one_sentence(kaggle, made, tmp_path):
    folder = tmp_path / "01-filter-data"
    shutil.copytree(made / "smallchat-small-01-filter-data", folder)
    facts = read_json(folder / "kernel-metadata.json")
    write_json(folder / "kernel-metadata.json", facts | {"dataset_sources": ["foo"]})
    with pytest.raises(UserError, match=r"kaggle package refuses .*01-filter-data"):
        push(folder, follow=False)


@pytest.mark.parametrize("ending,words", [("error", "ended as error"), ("failed", r"says failed: it broke")])
def test_a_session_that_fails_ends_the_push(kaggle, made, ending, words):
    kaggle.plan[DATA] = [ending]
    with pytest.raises(UserError, match=words):
        push(made, follow=True)
    assert list(kaggle.versions) == [DATA]


def test_a_server_in_trouble_is_one_sentence(kaggle, made):
    kaggle.down = True
    with pytest.raises(UserError, match=r"cannot be asked about .*try again"):
        push(made, follow=True)


@pytest.mark.parametrize("folder,words", [("empty", "kaggle bundle"), ("made", "kaggle.com/settings")])
def test_bad_input_is_one_sentence(tmp_path, made, folder, words):
    (tmp_path / "empty").mkdir()
    given = made if folder == "made" else tmp_path / "empty"
    environment = {n: v for n, v in os.environ.items() if not n.startswith("KAGGLE")} | {"HOME": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-m", "nbutils", "kaggle", "push", str(given)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    assert ran.returncode == 1 and words in ran.stderr and len(ran.stderr.strip().splitlines()) == 1, ran.stderr


def test_a_moment_of_denial_costs_no_earlier_session(kaggle, made):
    """A notebook that nothing here says was pushed counts as new at the third look alone."""
    kaggle.plan[TRAIN] = ["paused"]
    push(made / "smallchat-small-01-filter-data", follow=True)
    push(made / "smallchat-small-02-train-sft", follow=False)
    pusher = Pusher(signed_in(), False)
    kaggle.looks[TRAIN] = 5  # ended
    kaggle.denied = 2
    assert pusher._is_there(TRAIN)
    kaggle.denied = 3
    assert not pusher._is_there(TRAIN)


def test_a_moment_of_denial_does_not_stop_what_was_pushed_from_here(kaggle, made):
    push(made / "smallchat-small-01-filter-data", follow=True)
    kaggle.denied = 1
    push(made / "smallchat-small-02-train-sft", follow=True)
    assert pushes(kaggle) == ["01-filter-data", "02-train-sft"]


@pytest.mark.parametrize("file", ["session.json", "model.safetensors"])
def test_an_errors_page_is_no_output(kaggle, made, file):
    folder = made / "smallchat-small-01-filter-data"
    kaggle.broken, kaggle.broken_times = file, 1
    push(folder, follow=True, patience=10)
    assert (folder / "output/runs/mine/train/final/model.safetensors").read_text() == "weights"
    kaggle.broken_times = 1000
    (folder / "pushed.json").unlink()
    with pytest.raises(UserError, match=r"Kaggle cannot be asked about .*503"):
        push(folder, follow=True)


@pytest.mark.parametrize("before", ["paused", "failed", "nothing"])
def test_the_version_before_is_not_taken_for_the_new_one(kaggle, made, before):
    kaggle.plan[TRAIN] = [before, "done"]
    push(made / "smallchat-small-01-filter-data", follow=True)
    folder = made / "smallchat-small-02-train-sft"
    push(folder, follow=False)
    kaggle.looks[TRAIN] = 5
    save = kaggle.RequestHandlerClass._SaveKernel

    def late(self, given):
        save(self, given)
        kaggle.lagging[given["slug"]] = 3

    class Late(kaggle.RequestHandlerClass):
        _SaveKernel = late

    kaggle.RequestHandlerClass = Late
    push(folder, follow=True)
    assert pushes(kaggle).count("02-train-sft") == 2, "and none more"
    assert json.loads((folder / "output/runs/mine/session.json").read_text())["time"] == 2
