"""The torchrun program that scores in several processes: `python -m nbutils.evaluate.worker REQUEST.json`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nbutils.core.files import read_json
from nbutils.core.torchrun import leave, run_worker, tell
from nbutils.evaluate.run import prepare
from nbutils.evaluate.score import score
from nbutils.evaluate.settings import EvaluateSettings


def fill(request: Path) -> None:
    """Scores what the cache lacks, sharded by rank. Nothing is returned: the answers are in the cache."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":  # else accelerate takes each process for the only one, and each scores everything
        os.environ["ACCELERATE_USE_CPU"] = "true"

    def say(text: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            tell(request.parent, "said", text=text)

    plan = prepare(EvaluateSettings.checked(read_json(request)))
    score(plan, device, say)
    tell(request.parent, "ended", left_out=plan.left_out)


if __name__ == "__main__":
    request = Path(sys.argv[1])
    leave(run_worker(request.parent, lambda: fill(request)))
