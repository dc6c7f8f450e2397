"""`python -m nbutils settings`: writes the training worker's SETTINGS.json without a kernel."""

from __future__ import annotations

import argparse
from pathlib import Path

from nbutils.core.errors import UserError
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
    profile = profile_path(arguments.profile)
    planned = plan(profile, arguments.overrides, arguments.run_dir)
    stage = maker("model")
    train = next((entry for entry in planned.stages if entry.stage == stage), None)
    if train is None:
        raise UserError("There is no training notebook among the notebooks, so there are no settings to write.")
    path = Path(arguments.out).absolute() if arguments.out else Run(planned.run).training / "settings.json"
    write_json(path, {"schema": 1, "settings": train.settings.model_dump(mode="json")})
    print(f"Wrote {shown(path)}. On one machine:")
    print(f"  torchrun --standalone --nproc-per-node=2 -m nbutils.train.worker {shown(path)}")
    print("On several that share the run folder, on each of them:")
    print(
        "  torchrun --nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 --rdzv-id=run "
        f"-m nbutils.train.worker {shown(path)}"
    )
    return 0
