"""A training stage as an earlier session left it, made up."""

from pathlib import Path

from nbutils.core.files import write_json
from tests.train.runs import checkpoint


def stage_at(run: Path, status: str, *steps: int, **entries) -> Path:
    """A training stage's folder in a run folder, with checkpoints at these steps; `entries` of its record."""
    folder = run / "train"
    write_json(run / "run.json", {"schema": 1, "name": run.name})
    record = {"schema": 1, "status": status, "started": "2026-01-01T10:00:00+00:00", "outputs": {},
              "parts": {"parameters": {"seed": 0}}}  # fmt: skip
    write_json(folder / "stage.json", record | entries)
    for step in steps:
        checkpoint(folder / "checkpoints", step)
    return folder
