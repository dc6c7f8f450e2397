"""A training stage as an earlier session left it, made up."""

from pathlib import Path

from nbutils.core.files import write_json
from tests.metrics.histories import write_done
from tests.train.runs import checkpoint


def stage_at(run: Path, status: str, *steps: int, **entries) -> Path:
    """A training stage's folder in a run folder, with checkpoints at these steps; `entries` of its record."""
    folder = run / "train"
    write_json(run / "run.json", {"schema": 1, "name": run.name})
    write_done(folder, **{"status": status, "parts": {"parameters": {"seed": 0}}} | entries)
    for step in steps:
        checkpoint(folder / "checkpoints", step)
    return folder
