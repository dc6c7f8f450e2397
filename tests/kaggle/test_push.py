"""`kaggle push` with the real `kaggle` package against an API on loopback."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from nbutils.cli import main
from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.kaggle.account import Account, signed_in
from nbutils.kaggle.push import RESULTS, Pusher, bundle_folders
from tests.kaggle.fake_kaggle import ALWAYS, FakeKaggle

kaggle_env = pytest.importorskip("kagglesdk.kaggle_env")
TRAIN = "someone/smallchat-small-02-train-sft"
DATA = "someone/smallchat-small-01-filter-data"
WHOLE = "someone/smallchat-small-whole-pipeline"
LATER = ["03-plot-metrics", "04-evaluate", "05-chat", "06-publish"]


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


@pytest.fixture
def made(unhurried, tmp_path) -> Path:
    """Bundles that were never pushed."""
    return shutil.copytree(unhurried["01-filter-data"].parent, tmp_path / "made")


def push(folder: Path, follow: bool = True, patience: float = 0.1) -> list[str]:
    """What was said."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setattr("nbutils.kaggle.account.PATIENCE_SECONDS", patience)
        Pusher(signed_in(), follow).push_all(bundle_folders(folder))
    return said.getvalue().splitlines()


def bundle(made: Path, address: str) -> Path:
    return made / address.partition("/")[2]


def pushes(kaggle: FakeKaggle) -> list[str]:
    """The ends of the names that were pushed."""
    return [name.rsplit("small-")[1] for name in kaggle.pushed]


def reads(kaggle: FakeKaggle, address: str) -> list[list[str]]:
    """What each version of a notebook reads."""
    return [version["kernelDataSources"] for version in kaggle.versions[address]]


def test_all_are_pushed_in_order_and_what_paused_is_pushed_again(kaggle, made):
    kaggle.plan[TRAIN] = ["paused", "paused", "done"]
    push(made)
    assert pushes(kaggle) == ["01-filter-data", *["02-train-sft"] * 3, *LATER]
    assert reads(kaggle, TRAIN) == [[DATA], [DATA, TRAIN], [DATA, TRAIN]]
    version = kaggle.versions[TRAIN][0]
    assert version["machineShape"] == "NvidiaTeslaT4" and version["isPrivate"] is True
    assert "ARCHIVE" in json.loads(version["text"])["cells"][1]["source"]
    output = bundle(made, TRAIN) / "output" / "runs" / "mine" / "train"
    assert (output / "final" / "model.safetensors").read_text() == "weights"
    assert not (output / "checkpoints").exists()
    assert read_json(bundle(made, TRAIN) / "kernel-metadata.json")["kernel_sources"][1] == TRAIN


def test_without_follow_later_notebooks_wait_for_a_finished_training(kaggle, made):
    kaggle.plan[TRAIN] = ["paused"]
    with pytest.raises(UserError, match=r"02-train-sft is paused.*--follow"):
        push(made, follow=False)
    assert kaggle.pushed == [DATA, TRAIN]


def test_one_bundle_needs_its_upstream(kaggle, made):
    with pytest.raises(UserError, match="01-filter-data is not on Kaggle yet"):
        push(bundle(made, TRAIN), follow=False)
    assert not kaggle.versions


def test_a_version_that_runs_without_its_inputs_is_never_taken_for_this_bundles(kaggle, made):
    push(bundle(made, DATA))
    kaggle.vanished.add(DATA)  # after we have looked
    for _ in range(2):
        with pytest.raises(UserError, match=r"does not know these kernel inputs.*01-filter-data"):
            push(bundle(made, TRAIN))
    assert pushes(kaggle) == ["01-filter-data", *["02-train-sft"] * 2]


def test_the_same_command_goes_on_where_it_was_cut_off(kaggle, made, monkeypatch):
    kaggle.plan[TRAIN] = ["paused"]
    download = Account.output

    def cut_off(self, address: str, target: Path, pattern: str) -> int:
        if address == TRAIN and pattern == RESULTS:
            raise KeyboardInterrupt
        return download(self, address, target, pattern)

    with monkeypatch.context() as cut, pytest.raises(KeyboardInterrupt):
        cut.setattr(Account, "output", cut_off)
        push(made)
    assert pushes(kaggle) == ["01-filter-data", "02-train-sft", "02-train-sft"]

    kaggle.looks[TRAIN] = 0  # the second session is still running
    said = push(made)
    assert pushes(kaggle)[3:] == LATER
    assert any("01-filter-data: version 1 is done, and nothing has changed" in line for line in said)
    assert any("02-train-sft is under way already" in line for line in said)

    book = next(bundle(made, TRAIN).glob("*.ipynb"))
    book.write_text(book.read_text() + "\n")  # another bundle: it runs again, and all that reads it
    push(made)
    assert pushes(kaggle)[7:] == ["02-train-sft", *LATER]


def test_a_hiccup_is_waited_out_and_a_server_in_trouble_is_one_sentence(kaggle, made):
    kaggle.failing = 4
    said = push(bundle(made, DATA), patience=30)
    assert pushes(kaggle) == ["01-filter-data"] and sum("trying again" in line for line in said) == 1
    kaggle.failing = ALWAYS
    with pytest.raises(UserError, match=r"cannot be asked about .*try again"):
        push(made)


def test_a_notebook_of_which_kaggle_shows_nothing_ends_the_waiting(kaggle, made, monkeypatch):
    pushing = Account.push

    def then_hidden(self, address: str, folder: Path):
        answer = pushing(self, address, folder)
        kaggle.denied[address] = ALWAYS
        return answer

    monkeypatch.setattr(Account, "push", then_hidden)
    with pytest.raises(UserError, match=r"shows no session of .*01-filter-data.*credentials.*--owner"):
        push(made)


def test_the_whole_pipeline_is_pushed_until_all_of_it_is_done(kaggle, made):
    kaggle.plan[WHOLE] = ["paused", "paused"]  # stopped before the evaluation: no stage's record says so
    push(bundle(made, WHOLE))
    assert pushes(kaggle) == ["whole-pipeline"] * 3
    kaggle.plan[WHOLE] = [*["done"] * 3, "failed"]
    (bundle(made, WHOLE) / "pushed.json").unlink()  # as from another machine
    with pytest.raises(UserError, match=r"whole-pipeline completed, but it is not done .*failed: it broke"):
        push(bundle(made, WHOLE))


@pytest.mark.parametrize(
    "ending,words",
    [
        ("error", "ended as error"),
        ("failed", r"completed, but it is not done \(its output says failed: it broke"),
        ("running", r"completed, but it is not done \(its output says running"),
        ("nothing", r"completed, but it is not done \(its output has no session.json"),
    ],
)
def test_a_session_that_does_not_finish_its_stage_ends_the_push(kaggle, made, ending, words):
    kaggle.plan[DATA] = [ending]
    with pytest.raises(UserError, match=f"01-filter-data {words}"):
        push(made)
    assert list(kaggle.versions) == [DATA]


def test_what_the_kaggle_package_refuses_is_one_sentence(kaggle, made):
    path = bundle(made, DATA) / "kernel-metadata.json"
    write_json(path, read_json(path) | {"dataset_sources": ["foo"]})
    with pytest.raises(UserError, match=r"kaggle package refuses .*01-filter-data"):
        push(path.parent, follow=False)


@pytest.mark.parametrize("folder,words", [("empty", "kaggle bundle"), ("made", "kaggle.com/settings")])
def test_bad_input_is_one_sentence(tmp_path, made, monkeypatch, capsys, folder, words):
    for name in [name for name in os.environ if name.startswith("KAGGLE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    api = pytest.importorskip("kaggle.api.kaggle_api_extended").KaggleApi
    for name in ("config_dir", "config"):
        monkeypatch.setattr(api, name, str(tmp_path / name))
    (tmp_path / "empty").mkdir()
    assert main(["kaggle", "push", str(tmp_path / folder)]) == 1
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("denied,again", [(3, [DATA, TRAIN]), (4, [DATA])])
def test_a_moment_of_denial_costs_no_earlier_session(kaggle, made, denied, again):
    """A notebook that nothing here says was pushed counts as new at the third look alone; the first is for the note."""
    push(bundle(made, DATA))
    push(bundle(made, TRAIN), follow=False)
    (bundle(made, TRAIN) / "pushed.json").unlink()
    kaggle.looks[TRAIN] = 5  # ended
    kaggle.denied[TRAIN] = denied
    push(bundle(made, TRAIN), follow=False)
    assert reads(kaggle, TRAIN) == [[DATA], again]


def test_of_what_was_pushed_from_here_no_denial_is_believed(kaggle, made):
    """Kaggle says of a notebook that is not there what it also says in a bad moment."""
    kaggle.plan[TRAIN] = ["paused", "done"]
    push(bundle(made, DATA))
    kaggle.denied[DATA] = 1
    kaggle.denied_after_output.add(TRAIN)
    push(bundle(made, TRAIN))
    assert reads(kaggle, TRAIN) == [[DATA], [DATA, TRAIN]]


@pytest.mark.parametrize("file", ["session.json", "model.safetensors"])
def test_an_errors_page_is_no_output(kaggle, made, file):
    folder = bundle(made, DATA)
    kaggle.broken[file] = 1
    push(folder, patience=10)
    assert (folder / "output/runs/mine/train/final/model.safetensors").read_text() == "weights"
    kaggle.broken[file] = ALWAYS
    (folder / "pushed.json").unlink()
    with pytest.raises(UserError, match=r"Kaggle cannot be asked about .*503"):
        push(folder)


@pytest.mark.parametrize("before", ["paused", "failed", "nothing"])
def test_the_version_before_is_not_taken_for_the_new_one(kaggle, made, before):
    kaggle.plan[TRAIN] = [before, "done"]
    push(bundle(made, DATA))
    push(bundle(made, TRAIN), follow=False)
    kaggle.looks[TRAIN] = 5
    kaggle.lag = 3
    push(bundle(made, TRAIN))
    assert pushes(kaggle).count("02-train-sft") == 2, "and none more"
    assert json.loads((bundle(made, TRAIN) / "output/runs/mine/session.json").read_text())["time"] == 2
