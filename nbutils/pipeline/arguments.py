"""Arguments that every command on a profile takes."""

from __future__ import annotations

import argparse
from pathlib import Path

from nbutils.core.files import resolve


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`-p NAME=VALUE`, which sets parameters over the profile's."""
    parser.add_argument(
        "-p",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="set one parameter; VALUE is YAML",
    )


def add_run_dir(parser: argparse.ArgumentParser) -> None:
    """`--run-dir DIR`, in place of the profile's."""
    parser.add_argument("--run-dir", metavar="DIR", help="the run folder, instead of the profile's run_dir")


def profile_path(given: str) -> Path:
    """A profile's path: as the shell means it, or else from the project root."""
    path = Path(given).expanduser()
    try:
        return path.absolute() if path.exists() else resolve(given)
    except OSError:  # too long for a name, or below a folder that can't be read; reading it says so
        return resolve(given)
