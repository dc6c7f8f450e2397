"""A program for torchrun that does one thing, named by ACT, and loads no training library."""

import os
import signal
import sys
import time
from pathlib import Path

from nbutils.core.run import pause
from nbutils.core.torchrun import run_worker, tell, within

STARTED = {"step": 0, "steps": 9, "world_size": 1, "device": "cpu", "precision": "fp32", "compiled": False,
           "microbatches_per_step": 1, "tokens_per_microbatch": 512}  # fmt: skip


def main(folder, act):
    """Does it, as the program of one rank."""
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
    if act == "goes on":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if act in ("pauses", "goes on"):
        tell(folder, "started", **STARTED)
        while act == "goes on" or not pause.requested(folder.parent):
            tell(folder, "warning", message="working")
            time.sleep(0.1)
        tell(folder, "paused", step=3, steps=9)
        return
    with within(0.2 if act == "hangs" else 60, folder):
        time.sleep(60)


if __name__ == "__main__":
    folder, act = Path(sys.argv[1]).parent, os.environ["ACT"]
    if act == "imports":  # nothing is followed before that is over
        tell(folder, "on")
        time.sleep(3)
    elif act == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(run_worker(folder, lambda: main(folder, act)))
