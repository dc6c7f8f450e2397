"""The mirror of checkpoints against a Hub on loopback (`test_sessions` kills a session and goes on from it)."""

import pytest

from nbutils.core.errors import UserError
from nbutils.kaggle.mirror import Mirror
from tests.kaggle.made_stages import stage_at
from tests.kaggle.mirror_hub import REPO
from tests.train.runs import checkpoint

CHECKPOINTS = "train/checkpoints"


@pytest.fixture
def run(tmp_path):
    """A run folder whose training has a checkpoint at step 10."""
    return stage_at(tmp_path / "runs" / "mine", "running", 10).parent


def in_mirror(step, file="manifest.json"):
    return f"mine/{CHECKPOINTS}/step-{step:06d}/{file}"


def flush(mirror, run):
    """A session that ends before the first checkpoint is due."""
    mirror.start(run)
    mirror.stop(run)


def test_the_newest_valid_checkpoint_is_sent_and_found_again(hub, run, capsys):
    (checkpoint(run / CHECKPOINTS, 20).path / "weights").write_bytes(b"x")  # damaged
    mirror = Mirror(REPO, 1)
    assert mirror.fetch("mine", 0) is None
    assert mirror.send(run) == 10 and mirror.send(run) is None
    assert hub.repos[REPO]["private"] is True
    assert hub.names() == ["mine/run.json", in_mirror(10), in_mirror(10, "weights"), "mine/train/stage.json"]

    checkpoint(run / CHECKPOINTS, 30)
    flush(mirror, run)  # a session that fails sends its last checkpoint
    assert in_mirror(30) in hub.names() and in_mirror(10) not in hub.names()
    assert mirror.fetch("mine", 30) is None
    found = mirror.fetch("mine", 20)
    assert "The mirror me/mirror is further" in capsys.readouterr().out
    assert (found / in_mirror(30, "weights")).read_bytes() == b"w" * 100
    assert not list(run.parent.glob(".mirror-*"))
    assert any("super-squash" in path for _, path in hub.requests)  # old checkpoints take no room there


@pytest.mark.parametrize("broken", ["/resolve/", ""])
def test_a_hub_in_trouble_is_one_sentence(hub, run, capsys, broken):
    """Whether its files cannot be read, or nothing at all."""
    Mirror(REPO, 1).send(run)
    hub.broken = (broken, 10**6)
    with pytest.raises(UserError, match=r"\Acheckpoint_mirror 'me/mirror' cannot be read.*\Z"):
        Mirror(REPO, 1).fetch("mine", 0)
    mirror = Mirror(REPO, 1)
    assert mirror.fetch("mine", 5) is None
    assert "continues from step 5" in capsys.readouterr().out
    hub.broken = ("", 0)
    checkpoint(run / CHECKPOINTS, 20)
    flush(mirror, run)  # what is attached is enough, and the mirror may be further: it is left alone
    assert in_mirror(20) not in hub.names()
    hub.broken = ("", 1)
    assert Mirror(REPO, 1).fetch("mine", 0) is not None, "a Hub that stumbles once is asked again"
    assert hub.broken == ("", 0)


def test_a_checkpoint_that_is_pruned_while_it_is_staged_replaces_nothing(hub, run, monkeypatch, capsys):
    Mirror(REPO, 1).send(run)
    pruned = checkpoint(run / CHECKPOINTS, 20)
    (pruned.path / "manifest.json").unlink()
    monkeypatch.setattr("nbutils.kaggle.mirror.newest_whole", lambda _: (pruned, {}))  # it was whole a moment ago
    mirror = Mirror(REPO, 60)
    flush(mirror, run)
    assert "step-000020 was pruned meanwhile" in capsys.readouterr().out
    assert mirror.sent == -1 and in_mirror(10) in hub.names()
