"""Bundled training on a simulated Kaggle: sessions that are killed, pause, fail, and go on to the same bits."""

import re

import pytest

from nbutils.core.files import read_jsonl, sha256_of_file
from tests.kaggle.mirror_hub import REPO, TOKEN
from tests.kaggle.simulated import SMALL, bundles, kill_session, kill_worker
from tests.train.runs import flip_a_bit, wait_for

DATA, TRAIN = "someone/smallchat-small-01-filter-data", "someone/smallchat-small-02-train-sft"


def weights(run):
    assert run.state("train") == "done"
    return sha256_of_file(run.final / "model.safetensors")


@pytest.mark.soak
def test_sessions_that_are_killed_pause_and_fail_end_as_one(hub, account, tmp_path):
    """The first publishes nothing and leaves only a mirror; the others are each fed what the one before left, the last
    a damaged checkpoint and the outputs of two versions at once.
    """
    online = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    options = ["--mirror", REPO, "-p", "mirror_minutes=0.01", "-p"]
    filtering, bundle, *_ = bundles(SMALL, tmp_path / "unhurried", *options, "budget_minutes=0")
    # A budget that is used up before the first step: a session takes one.
    hurried = bundles(SMALL, tmp_path / "hurried", *options, "budget_minutes=0.001")[1]
    data = account.run(filtering, {}).working
    hub.open.clear()

    def killed(process, run):
        wait_for(lambda: hub.asked.is_set() and run.state("train") == "done", 200)
        assert not hub.names()
        hub.open.set()  # the Hub took nothing, and training went on to its end
        wait_for(lambda: any("manifest.json" in name for name in hub.names()))
        kill_session(process)

    undisturbed = account.run(bundle, {DATA: data}, during=killed, **online)
    assert "starts at step 0" in undisturbed.text and "its work is lost" in undisturbed.text

    paused = account.run(hurried, {DATA: data}, **online)
    step = paused.run.record("train")["facts"]["step"]
    assert f"{REPO} is further" in paused.text and f"at step {step - 1};" in paused.text
    assert "Save Version" in paused.text and f" % (step {step})" in paused.text and TOKEN not in paused.text

    def failing(process, run):
        wait_for(lambda: (newest := run.newest_sealed()) and newest.step > step)
        kill_worker(process)

    failed = account.run(bundle, {DATA: data, TRAIN: paused.working}, during=failing)
    assert "Continues the session of" in failed.text and f"at step {step};" in failed.text
    assert failed.run.state("train") == "failed" and "\033[1;31mUserError: Training ended" in failed.text

    damaged = failed.run.checkpoints()[0]
    flip_a_bit(damaged.path / "model.safetensors")
    last = account.run(bundle, {DATA: data, "other/first-version": paused.working, TRAIN: failed.working})
    assert re.search(rf"{damaged.name} has a changed model.safetensors .*is passed over", last.text)
    assert f"at step {damaged.step - 1};" in last.text and weights(last.run) == weights(undisturbed.run)
    rows = read_jsonl(last.run.path / "kaggle.jsonl")
    assert [row["step"] for row in rows] == [step - 1, step, damaged.step - 1]

    again = account.run(bundle, {DATA: data, TRAIN: last.working})
    assert "finished already" in again.text and "Training starts" not in again.text
    assert weights(again.run) == weights(undisturbed.run)
    assert (again.run.path / "run.json").is_file()
