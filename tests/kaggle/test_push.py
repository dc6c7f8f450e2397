"""`kaggle push` with the real `kaggle` package against an API on loopback."""

import json
import os
import shutil

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.kaggle.account import signed_in
from nbutils.kaggle.push import Pusher, bundle_folders
from tests.conftest import ROOT
from tests.kaggle.fake_kaggle import ALWAYS, FakeKaggle

kaggle_env = pytest.importorskip("kagglesdk.kaggle_env")
DATA, TRAIN, *LATER = (
    f"smallchat-kaggle-t4x2-{name}"
    for name in ("01-filter-data", "02-train-sft", "03-plot-metrics", "04-evaluate", "05-chat", "06-publish")
)
WHOLE = "smallchat-kaggle-t4x2-whole-pipeline"
MODEL = "output/runs/mine/train/final/model"


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
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
def made(bundled, tmp_path):
    """Bundles that were never pushed."""
    return shutil.copytree(bundled(ROOT / "params" / "kaggle_t4x2.yaml"), tmp_path / "made")


@pytest.fixture
def push(made, monkeypatch, capsys):
    """Pushes one of them, or all; what was said."""

    def pushed(name="", follow=True, patience=0.1):
        monkeypatch.setattr("nbutils.kaggle.account.PATIENCE_SECONDS", patience)
        Pusher(signed_in(), follow).push_all(bundle_folders(made / name))
        return capsys.readouterr().out

    return pushed


def reads(kaggle, name):
    """What each version of a notebook reads."""
    versions = kaggle.versions[name]
    return [[source.removeprefix("someone/") for source in version["kernelDataSources"]] for version in versions]


def test_all_are_pushed_in_order_and_what_paused_is_pushed_again(kaggle, made, push):
    kaggle.plan[TRAIN] = ["paused", "paused", "done"]
    push()
    assert kaggle.pushed == [DATA, *[TRAIN] * 3, *LATER]
    assert reads(kaggle, TRAIN) == [[DATA], [DATA, TRAIN], [DATA, TRAIN]]
    version = kaggle.versions[TRAIN][0]
    assert version["machineShape"] == "NvidiaTeslaT4" and version["isPrivate"] is True
    assert "ARCHIVE" in json.loads(version["text"])["cells"][1]["source"]
    model = made / TRAIN / MODEL
    assert model.read_text() == '"weights"' and not (model.parents[1] / "checkpoints").exists()
    assert read_json(made / TRAIN / "kernel-metadata.json")["kernel_sources"][1] == f"someone/{TRAIN}"


@pytest.mark.parametrize(
    "name,ending,follow,words",
    [
        (DATA, "error", True, "ended as error"),
        (DATA, "failed", True, "completed, but it is not done .*says failed: it broke"),
        (DATA, "running", True, "completed, but it is not done .*says running"),
        (DATA, "nothing", True, "completed, but it is not done .*has no session.json"),
        (TRAIN, "paused", False, r"is paused.*--follow"),
    ],
)
def test_a_session_that_does_not_finish_its_stage_ends_the_push(kaggle, push, name, ending, follow, words):
    kaggle.plan[name] = [ending]
    with pytest.raises(UserError, match=f"{name} {words}"):
        push(follow=follow)
    assert kaggle.pushed == [DATA, TRAIN][: 1 + (name == TRAIN)]


def test_the_whole_pipeline_is_pushed_until_all_of_it_is_done(kaggle, push):
    kaggle.plan[WHOLE] = ["paused", "paused"]  # stopped before the evaluation: no stage's record says so
    push(WHOLE)
    assert kaggle.pushed == [WHOLE] * 3


def test_one_bundle_needs_its_upstream(kaggle, push):
    with pytest.raises(UserError, match="01-filter-data is not on Kaggle yet"):
        push(TRAIN, follow=False)
    assert not kaggle.pushed


def test_a_version_that_runs_without_its_inputs_is_never_taken_for_this_bundles(kaggle, push):
    push(DATA)
    kaggle.unknown = [f"someone/{DATA}"]  # after we have looked
    for _ in range(2):
        with pytest.raises(UserError, match=r"does not know these kernel inputs.*01-filter-data"):
            push(TRAIN)
    assert kaggle.pushed == [DATA, TRAIN, TRAIN]


def test_the_same_command_goes_on_where_it_was_cut_off(kaggle, made, push):
    kaggle.plan[TRAIN] = ["paused"]
    push(DATA)
    kaggle.failing["model"] = ALWAYS
    with pytest.raises(UserError):
        push(TRAIN)
    assert kaggle.pushed == [DATA, TRAIN, TRAIN]

    kaggle.failing.clear()
    kaggle.looks[TRAIN] = 0  # the second session is still running
    said = push()
    assert kaggle.pushed[3:] == LATER
    assert f"{DATA}: version 1 is done, and nothing has changed" in said and f"{TRAIN} is under way already" in said

    book = next((made / TRAIN).glob("*.ipynb"))
    book.write_text(book.read_text() + "\n")  # another bundle: it runs again, and all that reads it
    push()
    assert kaggle.pushed[7:] == [TRAIN, *LATER]


@pytest.mark.parametrize("asked", ["GetKernelSessionStatus", "SaveKernel", "session.json", "model"])
def test_a_hiccup_is_waited_out_and_a_server_in_trouble_is_one_sentence(kaggle, made, push, asked):
    """And an error's page is no output."""
    kaggle.failing[asked] = 4
    assert push(DATA, patience=30).count("trying again") == 1
    assert kaggle.pushed == [DATA] and (made / DATA / MODEL).read_text() == '"weights"'
    kaggle.failing[asked] = ALWAYS
    (made / DATA / "pushed.json").unlink()
    with pytest.raises(UserError, match=r"Kaggle cannot be asked about .*503.*try again"):
        push(DATA)


def test_a_notebook_of_which_kaggle_shows_nothing_ends_the_waiting(kaggle, push):
    kaggle.denied[DATA] = ALWAYS
    with pytest.raises(UserError, match=r"shows no session of .*01-filter-data.*credentials.*--owner"):
        push()


def test_what_the_kaggle_package_refuses_is_one_sentence(kaggle, made, push):
    path = made / DATA / "kernel-metadata.json"
    write_json(path, read_json(path) | {"dataset_sources": ["foo"]})
    with pytest.raises(UserError, match=r"kaggle package refuses .*01-filter-data"):
        push(DATA)


@pytest.mark.parametrize("folder,words", [("empty", "kaggle bundle"), ("made", "kaggle.com/settings")])
def test_bad_input_is_one_sentence(tmp_path, made, monkeypatch, refused, folder, words):
    for name in [name for name in os.environ if name.startswith("KAGGLE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    api = pytest.importorskip("kaggle.api.kaggle_api_extended").KaggleApi
    for name in ("config_dir", "config"):
        monkeypatch.setattr(api, name, str(tmp_path / name))
    (tmp_path / "empty").mkdir()
    assert words in refused("kaggle", "push", tmp_path / folder)


@pytest.mark.parametrize(
    "forgotten,denied,again", [(True, 3, [DATA, TRAIN]), (True, 4, [DATA]), (False, ALWAYS, [DATA, TRAIN])]
)
def test_a_moment_of_denial_costs_no_earlier_session(kaggle, made, push, forgotten, denied, again):
    """A notebook that nothing here says was pushed counts as new at the third look alone; the first is for the note.

    Of what was pushed from here no denial is believed: Kaggle says of a notebook that is not there what it also says
    in a bad moment.
    """
    push(DATA)
    push(TRAIN, follow=False)
    if forgotten:
        (made / TRAIN / "pushed.json").unlink()
    kaggle.looks[TRAIN] = 5  # ended
    kaggle.denied[TRAIN], kaggle.denied[DATA] = denied, 1
    push(TRAIN, follow=False)
    assert reads(kaggle, TRAIN) == [[DATA], again]


@pytest.mark.parametrize("before", ["paused", "nothing"])
def test_the_version_before_is_not_taken_for_the_new_one(kaggle, made, push, before):
    kaggle.plan[TRAIN] = [before]
    push(DATA)
    push(TRAIN, follow=False)
    kaggle.looks[TRAIN] = 5
    kaggle.lag = 3
    push(TRAIN)
    assert kaggle.pushed.count(TRAIN) == 2, "and none more"
    assert read_json(made / TRAIN / "output/runs/mine/session.json")["time"] == 2
