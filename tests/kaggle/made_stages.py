"""A training stage as an earlier session left it, made up."""

from __future__ import annotations

from pathlib import Path

from nbutils.core.files import write_json
from nbutils.train.checkpoints import seal


def stage_at(run: Path, status: str, started: str = "2026-01-01T10:00:00+00:00", **parameters) -> Path:
    """A training stage's folder in a run folder."""
    folder = run / "train"
    folder.mkdir(parents=True)
    write_json(run / "run.json", {"schema": 1, "name": run.name, "parameters": {}})
    record = {"schema": 1, "stage": "train", "status": status, "started": started, "outputs": {}, "facts": {}}
    write_json(folder / "stage.json", record | {"parts": {"parameters": {"seed": 0} | parameters}})
    return folder


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / "checkpoints" / f"step-{step:06d}"
    partial = path.with_name("x.partial")
    partial.mkdir(parents=True)
    (partial / "weights").write_bytes(b"w" * 100)
    seal(partial, path, {}, {"step": step})
    return path
