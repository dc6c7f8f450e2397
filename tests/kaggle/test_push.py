"""`kaggle push` with the real `kaggle` package against an API on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import read_json
from nbutils.kaggle.push import Pusher, bundle_folders, signed_in
from tests.conftest import ROOT
from tests.kaggle.fake_kaggle import FakeKaggle
from tests.kaggle.simulated import bundles

kaggle_env = pytest.importorskip("kagglesdk.kaggle_env")
TRAIN = "someone/smallchat-small-02-train-sft"
DATA = "someone/smallchat-small-01-filter-data"


@pytest.fixture
def kaggle(monkeypatch, tmp_path) -> Iterator[FakeKaggle]:
    server = FakeKaggle()
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, server.url)
    monkeypatch.setenv("KAGGLE_USERNAME", "someone")
    monkeypatch.setenv("KAGGLE_KEY", "k" * 32)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    yield server
    server.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    bundles(ROOT / "tests" / "kaggle" / "small.yaml", folder)
    return folder


def push(folder: Path, follow: bool) -> list[str]:
    """What was said."""
    said: list[str] = []
    Pusher(signed_in(), follow, poll=0.01, say=said.append).push_all(bundle_folders(folder))
    return said


def test_all_are_pushed_in_order_and_what_paused_is_pushed_again(kaggle, made):
    kaggle.plan[TRAIN] = ["paused", "paused", "done"]
    said = push(made, follow=True)
    pushed = [line.split()[1].rsplit("small-")[1] for line in kaggle.log if line.startswith("push")]
    assert pushed == [
        *("01-filter-data", "02-train-sft", "02-train-sft", "02-train-sft"),
        *("03-plot-metrics", "04-evaluate", "05-chat", "06-publish"),
    ]
    versions = kaggle.versions[TRAIN]
    assert [version["kernelDataSources"] for version in versions] == [[DATA], [DATA, TRAIN], [DATA, TRAIN]]
    assert versions[0]["machineShape"] == "NvidiaTeslaT4" and versions[0]["isPrivate"] is True
    assert "ARCHIVE" in json.loads(versions[0]["text"])["cells"][1]["source"]
    assert any("22.5 of 30 hours left" in line for line in said)
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


@pytest.mark.parametrize("ending,words", [("error", "ended as error"), ("failed", "failed train: it broke")])
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
