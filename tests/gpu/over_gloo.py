"""The training worker for several ranks on one card: gloo carries what they exchange, since NCCL refuses that."""

import os
import sys
from functools import partial

from nbutils.core.torchrun import leave
from nbutils.train import arguments, worker

if __name__ == "__main__":
    os.environ["LOCAL_RANK"] = "0"  # by which a rank chooses its card
    arguments.Arguments = partial(arguments.Arguments, ddp_backend="gloo")
    leave(worker.main(sys.argv[1:]))
