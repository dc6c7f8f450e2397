"""The notebooks' files: where they are, their code, and their parameters cells."""

from __future__ import annotations

import ast
import io
import json
import os
import tokenize
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import PLACE, Json
from nbutils.core.stages import StageSpec

SWEEP = "07_sweep.ipynb"
"""The notebook that is no stage: it runs others."""


def notebooks_folder() -> Path:
    """Where the notebooks are: NBUTILS_NOTEBOOKS, or `notebooks/` beside the package."""
    given = os.environ.get("NBUTILS_NOTEBOOKS")
    return Path(given) if given else PLACE / "notebooks"


def notebook_path(stage: StageSpec) -> Path:
    """The source notebook of a stage."""
    return notebooks_folder() / stage.file


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell."""

    type: str
    default: Any
    help: str


def code_cells(path: Path) -> list[Json]:
    """The code cells of a notebook file, each with `source` as one string and its `tags`."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is no notebook ({error}); restore it from git.") from None
    return [
        {"source": "".join(cell["source"]), "tags": cell["metadata"].get("tags", [])}
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def parameters(path: Path) -> dict[str, Parameter]:
    """The parameters cell of a notebook: typed literals with a line of help each. UserError for anything else."""
    stat = path.stat()
    return dict(_read_once(path, stat.st_mtime_ns, stat.st_size))


@lru_cache
def _read_once(path: Path, _changed: int, _size: int) -> dict[str, Parameter]:
    try:
        (source,) = (cell["source"] for cell in code_cells(path) if "parameters" in cell["tags"])
        comments = _comments(source)
        return {
            node.target.id: Parameter(
                ast.unparse(node.annotation),
                ast.literal_eval(node.value),
                comments.get(node.end_lineno, ""),
            )
            for node in ast.parse(source).body
            if not isinstance(node, ast.Expr)
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path.name} needs exactly one cell tagged 'parameters', with typed literals alone such as "
            f"`seed: int = 1` ({error}); restore it from git."
        ) from None


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}
