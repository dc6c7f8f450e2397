"""The mirror of checkpoints against a Hub on loopback; a soak test kills a session and goes on from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbutils.core.files import read_json, sha256_of_file
from tests.kaggle.made_stages import checkpoint, stage_at
from tests.kaggle.mirror_hub import MirrorHub
from tests.kaggle.simulated import DATA, SMALL, bundles, done, kill_session, wait_for

TOKEN = "hf_" + "not-a-real-one-but-long-enough"
REPO = "me/mirror"


@pytest.fixture
def hub() -> Iterator[MirrorHub]:
    server = MirrorHub()
    yield server
    server.close()


def environment(hub: MirrorHub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}


def python(hub: MirrorHub, code: str, *arguments: object) -> str:
    """Runs code in a process for which the fake Hub is the real one."""
    ran = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment(hub),
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout.strip()


SEND = """
import sys
from pathlib import Path
from nbutils.kaggle.mirror import Mirror
print(Mirror(sys.argv[1], 1).send(Path(sys.argv[2])))
"""
FLUSH = """
import sys
from pathlib import Path
from nbutils.kaggle.mirror import Mirror
mirror = Mirror(sys.argv[1], 60)
mirror.start(Path(sys.argv[2]))
mirror.stop(Path(sys.argv[2]))
"""
FETCH = """
import sys
from nbutils.core.errors import UserError
from nbutils.kaggle import mirror
from nbutils.kaggle.mirror import Mirror
mirror.PAUSES = (0.0, 0.5, 0.5)
try:
    one = Mirror(sys.argv[1], 1)
    folder = one.fetch("mine", int(sys.argv[2]))
    print("sends" if not one._ended.is_set() else "sends nothing", folder)
except UserError as error:
    print(error)
"""


def test_the_newest_valid_checkpoint_is_sent_and_found_again(hub, tmp_path):
    folder = stage_at(tmp_path / "runs" / "mine", "running")
    checkpoint(folder, 10)
    (checkpoint(folder, 20) / "weights").write_bytes(b"x")  # damaged
    assert python(hub, FETCH, REPO, 0) == "sends None"
    assert python(hub, SEND, REPO, folder.parent) == "10"
    assert hub.repos[REPO]["private"] is True
    names = [f"mine/train/checkpoints/step-000010/{name}" for name in ("manifest.json", "weights")]
    assert hub.names(REPO) == ["mine/run.json", *names, "mine/train/stage.json"]

    checkpoint(folder, 30)
    assert python(hub, SEND, REPO, folder.parent) == "30"
    assert not any("step-000010" in name for name in hub.names(REPO))
    assert python(hub, FETCH, REPO, 30) == "sends None"
    said = python(hub, FETCH, REPO, 20)
    assert "The mirror me/mirror is further" in said
    copy = Path(said.split()[-1]) / "mine" / "train" / "checkpoints" / "step-000030" / "weights"
    assert copy.read_bytes() == b"w" * 100
    assert not list((tmp_path / "runs").glob(".mirror-*"))
    assert any("super-squash" in path for _, path in hub.requests)  # old checkpoints take no room there


def test_a_session_that_fails_sends_its_last_checkpoint(hub, tmp_path):
    checkpoint(stage_at(tmp_path / "runs" / "mine", "running"), 10)
    python(hub, FLUSH, REPO, tmp_path / "runs" / "mine")
    assert "mine/train/checkpoints/step-000010/weights" in hub.names(REPO)


@pytest.mark.parametrize("broken", ["files", "all"])
def test_a_hub_in_trouble_is_one_sentence(hub, tmp_path, broken):
    checkpoint(stage_at(tmp_path / "runs" / "mine", "running"), 10)
    python(hub, SEND, REPO, tmp_path / "runs" / "mine")
    hub.broken = broken
    said = python(hub, FETCH, REPO, 0)
    assert "checkpoint_mirror 'me/mirror' cannot be read" in said and "\n" not in said
    said = python(hub, FETCH, REPO, 5)  # what is attached is enough, and the mirror may be further: it is left alone
    assert "continues from step 5" in said and said.endswith("sends nothing None")


def test_a_checkpoint_that_is_pruned_while_it_is_staged_replaces_nothing(hub, tmp_path):
    folder = stage_at(tmp_path / "runs" / "mine", "running")
    checkpoint(folder, 10)
    python(hub, SEND, REPO, folder.parent)
    checkpoint(folder, 20)
    prune = """
import sys
from pathlib import Path
from nbutils.kaggle import mirror
found = mirror.newest_whole
def pruned_meanwhile(folder):
    checkpoint, damaged = found(folder)
    (checkpoint.path / "manifest.json").unlink()
    return checkpoint, damaged
mirror.newest_whole = pruned_meanwhile
one = mirror.Mirror(sys.argv[1], 1)
one._try(Path(sys.argv[2]))
print(one.sent)
"""
    said = python(hub, prune, REPO, folder.parent)
    assert "step-000020 was pruned meanwhile: it has no manifest" in said and said.endswith("-1")
    assert "mine/train/checkpoints/step-000010/manifest.json" in hub.names(REPO)


def test_a_hub_that_stumbles_is_asked_again(hub, tmp_path):
    checkpoint(stage_at(tmp_path / "runs" / "mine", "running"), 10)
    python(hub, SEND, REPO, tmp_path / "runs" / "mine")
    hub.broken = "once"
    assert "/smallchat-mirror-" in python(hub, FETCH, REPO, 0)
    assert hub.broken == ""


@pytest.mark.soak
def test_a_killed_session_that_published_nothing_goes_on_from_the_mirror(hub, account, data, undisturbed, tmp_path):
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

    killed = account.run(made["02-train-sft"], {DATA: data}, during=kill, **environment(hub))
    assert killed.status != 0
    shutil.rmtree(killed.working)  # Kaggle has published nothing
    outcome = done(account.run(made["02-train-sft"], {DATA: data}, **environment(hub)))
    assert "me/mirror is further" in outcome.text and "Continues the session of" in outcome.text
    models = [o.working / "runs" / "small" / "train" / "final" / "model.safetensors" for o in (outcome, undisturbed)]
    assert sha256_of_file(models[0]) == sha256_of_file(models[1])
    assert read_json(models[0].parents[1] / "stage.json")["status"] == "done"
    assert TOKEN not in outcome.text
