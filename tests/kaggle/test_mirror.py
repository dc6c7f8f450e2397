"""The mirror of checkpoints against a Hub on loopback; a soak test kills a session and goes on from it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, sha256_of_file
from nbutils.core.run.checkpoints import Checkpoint, newest_whole
from nbutils.kaggle.mirror import Mirror
from tests.kaggle.made_stages import checkpoint, stage_at
from tests.kaggle.mirror_hub import MirrorHub
from tests.kaggle.simulated import DATA, SMALL, bundles, done, kill_session, wait_for

TOKEN = "hf_" + "not-a-real-one-but-long-enough"
REPO = "me/mirror"


@pytest.fixture
def hub(monkeypatch) -> Iterator[MirrorHub]:
    """A Hub that this process takes for the real one."""
    server = MirrorHub()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub._commit_api, "is_xet_available", lambda: False)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patched = {"ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": template}
    for name, value in (patched | {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}).items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("nbutils.kaggle.mirror.PAUSES", (0.0, 0.1, 0.1))
    yield server
    server.close()


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder whose training has a checkpoint at step 10."""
    folder = stage_at(tmp_path / "runs" / "mine", "running")
    checkpoint(folder, 10)
    return folder.parent


def sealed(step: int) -> str:
    return f"mine/train/checkpoints/step-{step:06d}/manifest.json"


def flush(mirror: Mirror, run: Path) -> None:
    """A session that ends before the first checkpoint is due."""
    mirror.start(run)
    mirror.stop(run)


def test_the_newest_valid_checkpoint_is_sent_and_found_again(hub, run, capsys):
    (checkpoint(run / "train", 20) / "weights").write_bytes(b"x")  # damaged
    mirror = Mirror(REPO, 1)
    assert mirror.fetch("mine", 0) is None
    assert mirror.send(run) == 10 and mirror.send(run) is None
    assert hub.repos[REPO]["private"] is True
    weights = sealed(10).replace("manifest.json", "weights")
    assert hub.names(REPO) == ["mine/run.json", sealed(10), weights, "mine/train/stage.json"]

    checkpoint(run / "train", 30)
    assert mirror.send(run) == 30
    assert sealed(30) in hub.names(REPO) and sealed(10) not in hub.names(REPO)
    assert mirror.fetch("mine", 30) is None
    found = mirror.fetch("mine", 20)
    assert found is not None and "The mirror me/mirror is further" in capsys.readouterr().out
    assert (found / "mine" / "train" / "checkpoints" / "step-000030" / "weights").read_bytes() == b"w" * 100
    assert not list(run.parent.glob(".mirror-*"))
    assert any("super-squash" in path for _, path in hub.requests)  # old checkpoints take no room there


def test_a_session_that_fails_sends_its_last_checkpoint(hub, run):
    flush(Mirror(REPO, 60), run)
    assert sealed(10) in hub.names(REPO)


@pytest.mark.parametrize("broken", ["files", "all"])
def test_a_hub_in_trouble_is_one_sentence(hub, run, capsys, broken):
    Mirror(REPO, 1).send(run)
    hub.broken = broken
    with pytest.raises(UserError, match=r"\Acheckpoint_mirror 'me/mirror' cannot be read.*\Z"):
        Mirror(REPO, 1).fetch("mine", 0)
    mirror = Mirror(REPO, 1)
    assert mirror.fetch("mine", 5) is None
    assert "continues from step 5" in capsys.readouterr().out
    hub.broken = ""
    checkpoint(run / "train", 20)
    flush(mirror, run)  # what is attached is enough, and the mirror may be further: it is left alone
    assert sealed(20) not in hub.names(REPO)


def test_a_checkpoint_that_is_pruned_while_it_is_staged_replaces_nothing(hub, run, monkeypatch, capsys):
    Mirror(REPO, 1).send(run)
    checkpoint(run / "train", 20)

    def pruned_meanwhile(folder: Path) -> tuple[Checkpoint | None, dict[Checkpoint, str]]:
        found, damaged = newest_whole(folder)
        assert found is not None
        (found.path / "manifest.json").unlink()
        return found, damaged

    monkeypatch.setattr("nbutils.kaggle.mirror.newest_whole", pruned_meanwhile)
    mirror = Mirror(REPO, 60)
    flush(mirror, run)
    assert "step-000020 was pruned meanwhile" in capsys.readouterr().out
    assert mirror.sent == -1 and sealed(10) in hub.names(REPO)


def test_a_hub_that_stumbles_is_asked_again(hub, run):
    Mirror(REPO, 1).send(run)
    hub.broken = "once"
    assert Mirror(REPO, 1).fetch("mine", 0) is not None
    assert hub.broken == ""


@pytest.mark.soak
def test_a_killed_session_that_published_nothing_goes_on_from_the_mirror(hub, account, data, undisturbed, tmp_path):
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    made = bundles(SMALL, tmp_path, "--mirror", REPO, "-p", "mirror_minutes=0.01", "-p", "budget_minutes=0")
    hub.open.clear()

    def kill(process: subprocess.Popen[str], working: Path) -> None:
        assert hub.asked.wait(200), "no checkpoint was sent"
        wait_for(working, "runs/small/train/final/config.json", process)
        assert not hub.names(REPO)
        hub.open.set()  # the Hub took nothing, and training went on to its end
        deadline = time.monotonic() + 200
        while not any("manifest.json" in name for name in hub.names(REPO)):
            assert time.monotonic() < deadline and process.poll() is None, "nothing reached the mirror"
            time.sleep(0.02)
        kill_session(process, working)

    killed = account.run(made["02-train-sft"], {DATA: data}, during=kill, **environment)
    assert killed.status != 0
    shutil.rmtree(killed.working)  # Kaggle has published nothing
    outcome = done(account.run(made["02-train-sft"], {DATA: data}, **environment))
    assert "me/mirror is further" in outcome.text and "Continues the session of" in outcome.text
    models = [o.working / "runs" / "small" / "train" / "final" / "model.safetensors" for o in (outcome, undisturbed)]
    assert sha256_of_file(models[0]) == sha256_of_file(models[1])
    assert read_json(models[0].parents[1] / "stage.json")["status"] == "done"
    assert TOKEN not in outcome.text
