"""A program for torchrun that does one thing, named by ACT, and loads no training library."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from nbutils.core.torchrun import run_worker, tell, within


def main(folder: Path, act: str) -> None:
    tell(folder, "on")
    if act == "sums":
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        ranks = torch.ones(1)
        dist.all_reduce(ranks)
        tell(folder, "finished", ranks=int(ranks))
        return
    if act == "raises" and os.environ["RANK"] == "1":
        raise RuntimeError(f"planted, with the secret {os.environ['HF_TOKEN']}")
    with within(0.2 if act == "hangs" else 60, folder):
        time.sleep(60)


if __name__ == "__main__":
    request = Path(sys.argv[1])
    os._exit(run_worker(request.parent, lambda: main(request.parent, os.environ["ACT"])))
