"""The cells of a notebook, run in this process."""

from pathlib import Path

from nbutils.core.notebooks import code_cells


def run_cells(notebook: Path, **parameters) -> dict:
    """Runs a notebook's code with these parameters instead of its own; returns its names."""
    names = {}
    for cell in code_cells(notebook):
        exec(cell["source"], names)
        if "parameters" in cell["tags"]:
            names |= parameters
    return names
