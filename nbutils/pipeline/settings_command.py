"""`python -m nbutils settings`: writes the training worker's SETTINGS.json without a kernel."""

from __future__ import annotations

import argparse
from pathlib import Path

from nbutils.core.files import shown, write_json
from nbutils.core.run.layout import Run
from nbutils.core.stages import maker
from nbutils.pipeline.parameters import plan
from nbutils.pipeline.profile import add_profile, profile_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `settings`."""
    add_profile(parser)
    parser.add_argument("--out", metavar="FILE", help="where to write (default: train/settings.json in the run folder)")


def main(arguments: argparse.Namespace) -> int:
    """Writes the file and prints the command that trains with it."""
    planned = plan(profile_path(arguments.profile), arguments.overrides, arguments.run_dir)
    (train,) = (entry for entry in planned.stages if entry.stage == maker("model"))
    path = Path(arguments.out).absolute() if arguments.out else Run(planned.run).training / "settings.json"
    write_json(path, {"schema": 1, "settings": train.settings.model_dump(mode="json")})
    program = f"-m nbutils.train.worker {shown(path)}"
    print(f"Wrote {shown(path)}. On one machine:\n  torchrun --standalone --nproc-per-node=2 {program}")
    print(
        "On several that share the run folder, on each of them:\n  torchrun --nnodes=2 --nproc-per-node=2 "
        f"--rdzv-backend=c10d --rdzv-endpoint=HOST:29500 --rdzv-id=run {program}"
    )
    return 0
