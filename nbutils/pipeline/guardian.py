"""`python -m nbutils.pipeline.guardian MARK`: waits until the pipeline is gone, then ends what it has left behind."""

from __future__ import annotations

import os
import signal
import sys

from nbutils.pipeline.processes import MARK, end

PATIENCE_SECONDS = 5.0


def main(mark: str) -> None:
    """Reads standard input until its end, which comes when the pipeline closes it or dies in whatever way."""
    os.environ.pop(MARK, None)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end(mark, PATIENCE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1])
