"""`make proof` starts again after its own kills, and after nothing else."""

from __future__ import annotations

import importlib.util

import pytest

from nbutils.core.errors import UserError


@pytest.fixture
def proof(root, tmp_path, monkeypatch):
    """tools/proof.py (no package), on made-up data in a folder of its own."""
    found = importlib.util.spec_from_file_location("proof", root / "tools" / "proof.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    (tmp_path / "params").symlink_to(root / "params")
    (tmp_path / "runs" / "demo" / "data").mkdir(parents=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def test_an_error_of_its_own_ends_it(proof, monkeypatch):
    def follow(settings, run, kills):
        assert settings.processes == 0 and settings.max_steps == 48
        raise UserError("The disk is full.")

    monkeypatch.setattr(proof, "follow", follow)
    with pytest.raises(UserError, match="The disk is full"):
        proof.train("killed", (12, 24))


def test_a_kill_of_its_own_starts_it_again(proof, monkeypatch):
    sessions = []

    def follow(settings, run, kills):
        sessions.append(list(kills))
        if kills:
            kills.pop(0)
            raise UserError("Training ended: rank 0 was killed by SIGKILL.")
        (run / "train" / "final").mkdir()
        (run / "train" / "final" / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(proof, "follow", follow)
    assert len(proof.train("killed", (12, 24))) == 64
    assert sessions == [[12, 24], [24], []]
