"""The torchrun program that scores in several processes: `python -m nbutils.evaluate.worker REQUEST.json`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nbutils.core.children import end_with_parent
from nbutils.core.files import read_json
from nbutils.evaluate.processes import SAID


def main(request: Path) -> None:
    """Scores what the cache lacks, sharded by rank. Nothing is returned: the answers are in the cache."""
    end_with_parent()
    import torch

    from nbutils.evaluate.run import plan
    from nbutils.evaluate.score import score
    from nbutils.evaluate.settings import EvaluateSettings

    asked = read_json(request)
    rank = int(os.environ.get("RANK", "0"))
    settings = EvaluateSettings.checked(asked["settings"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":  # else accelerate takes each process for the only one, and each scores everything
        os.environ["ACCELERATE_USE_CPU"] = "true"
    planned = plan(settings, Path(asked["folder"]), Path(asked["data"]), Path(asked["trained"]))
    score(
        planned.models,
        planned.tasks,
        planned.asking,
        planned.cache,
        device=device,
        tokens_per_batch=settings.tokens_per_batch,
        say=_tell if rank == 0 else lambda _: None,
    )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _tell(text: str) -> None:
    print(f"{SAID}{text}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
