"""`make proof` starts again after its own kills, and after nothing else."""

import importlib

import pytest

from nbutils.core.errors import UserError


def test_only_its_own_kills_start_it_again(root, tmp_path, monkeypatch):
    """Three sessions: each of two kills ends one, and an error of its own the third."""
    monkeypatch.syspath_prepend(str(root / "tools"))
    proof = importlib.import_module("proof")
    (tmp_path / "params").symlink_to(root / "params")
    (tmp_path / "runs" / "demo" / "data").mkdir(parents=True)
    monkeypatch.setattr(proof, "ROOT", tmp_path)
    sessions = []

    def follow(settings, run, kills):
        assert settings.processes == 0 and settings.max_steps == 48
        sessions.append(list(kills))
        if not kills:
            raise UserError("The disk is full.")
        kills.pop(0)
        raise UserError("Training ended: rank 0 was killed by SIGKILL.")

    monkeypatch.setattr(proof, "follow", follow)
    with pytest.raises(UserError, match="The disk is full"):
        proof.train("killed", (12, 24))
    assert sessions == [[12, 24], [24], []]
