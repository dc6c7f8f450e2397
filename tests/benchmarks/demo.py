"""What `make demo` takes after the set-up: all six notebooks in a fresh run folder, and the run that finds them done.

Targets (issues 2 and 3): the first three notebooks under 180 s and all six under 300 s on two cores, at least half of
it in training and evaluation, the evaluation under 60 s, a second run under 15 s.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from nbutils.core.files import read_json
from nbutils.core.stages import STAGES
from tests.benchmarks._measured import report, timed
from tests.conftest import ROOT

LIMITS = {"all": 300, "01-03": 180, "evaluate": 60, "second_run": 15}  # seconds


def main() -> int:
    """Prints one line of JSON; the exit status is 1 where the second run does anything."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "demo"
        line = [sys.executable, "-m", "nbutils", "run", "params/demo.yaml", "--run-dir", str(run)]
        line += ["-p", f"cache_dir={folder}/cache"]  # so that its evaluation finds nothing of another run's

        def demo() -> str:
            done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"The demo failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
            return done.stdout

        (whole, _), (second, said) = timed(demo), timed(demo)
        parts = {stage.name: read_json(run / stage.name / "stage.json")["seconds"] for stage in STAGES}
    seconds = {"all": whole, "01-03": sum(parts[name] for name in ("data", "train", "metrics"))}
    seconds |= {"evaluate": parts["evaluate"], "second_run": second}
    share = (parts["train"] + parts["evaluate"]) / whole
    report(
        "demo",
        benchmark="demo",
        unit="seconds",
        by_stage=parts,
        share_in_train_and_evaluate=round(share, 3),
        limits=LIMITS,
        met=all(seconds[name] < limit for name, limit in LIMITS.items()) and share >= 0.5,
        **{name: round(value, 1) for name, value in seconds.items()},
    )
    return 0 if "Nothing to do" in said else 1


if __name__ == "__main__":
    sys.exit(main())
