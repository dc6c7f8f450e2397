"""The cache key of a stage: everything that its result depends on, each part by its own hash."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from nbutils.core.files import PLACE, Json, sha256_of_bytes, sha256_of_json
from nbutils.core.notebooks import code_cells, notebook_path
from nbutils.core.run.layout import Run
from nbutils.core.run.record import current_hash
from nbutils.core.run.state import Change, Kind, State, differences
from nbutils.core.settings import OUTSIDE, Settings
from nbutils.core.stages import StageSpec

PACKAGE = PLACE / "nbutils"
"""The folder of the package whose modules count."""

CODE, PARAMETERS, MODULES, UPSTREAM = "code", "parameters", "modules", "upstream"
"""The parts of a key."""


def key_parts(stage: StageSpec, settings: Settings) -> Json:
    """What the stage's result depends on: code cells, result parameters, declared modules, upstream files."""
    cells = [cell["source"] for cell in code_cells(notebook_path(stage)) if "parameters" not in cell["tags"]]
    return {
        CODE: sha256_of_json([normalised(source) for source in cells]),
        PARAMETERS: settings.result_parameters(),
        MODULES: code_hashes(stage),
        UPSTREAM: upstream_hashes(stage, Run(settings.run_path)),
    }


def changes(before: Json, after: Json) -> list[Change]:
    """What differs between the parts of two keys."""
    old, new = dict(before[PARAMETERS]), dict(after[PARAMETERS])
    outside = old.pop(OUTSIDE, {}), new.pop(OUTSIDE, {})
    return [
        *([Change(Kind.CELLS)] if before[CODE] != after[CODE] else []),
        *differences(Kind.PARAMETER, old, new),
        *differences(Kind.OUTSIDE, *outside),
        *differences(Kind.CODE, before[MODULES], after[MODULES]),
        *differences(Kind.UPSTREAM, before[UPSTREAM], after[UPSTREAM]),
    ]


def upstream_hashes(stage: StageSpec, run: Run) -> dict[str, str]:
    """Hashes of the files that a stage reads from earlier ones, as they are on disk now.

    Of a paused training that includes its newest checkpoint's model.
    """
    hashes: dict[str, str] = {}
    for name in stage.reads:
        record = run.record(name)
        if record is None:
            continue
        folder = run.folder(name)
        newest = run.newest_sealed() if record["status"] == State.PAUSED else None
        hashes |= {
            f"{name}/{file}": current_hash(folder, file, entry)
            for file, entry in record["outputs"].items()
            if stage.needs(name, file) or (newest and newest.path in (folder / file).parents)
        }
    return hashes


def code_hashes(stage: StageSpec) -> dict[str, str]:
    """The hash of each module and resource that the stage declares as its result code."""
    return {name: _hash_of(code_file(name)) for name in stage.code}


def code_file(name: str) -> Path:
    """The file of a declared module (`train.loss`) or resource (`core/chatml.jinja`)."""
    return PACKAGE / name if "/" in name else PACKAGE / f"{name.replace('.', '/')}.py"


@lru_cache(maxsize=1024)
def normalised(source: str) -> str:
    """The syntax tree of Python source without what cannot change a result: comments, layout, docstrings, and the
    sentences of errors (the arguments of `UserError(...)`). Source that is not plain Python counts letter by letter.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source
    return repr(_plain(tree))


def _is_text(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(ast.Constant(str())):
            return True
    return False


def _plain(node: Any) -> Any:
    """A syntax tree as nested tuples, without empty fields: `ast.dump` writes others in each version of Python."""
    if isinstance(node, list):
        return [_plain(item) for item in node if not _is_text(item)]
    if not isinstance(node, ast.AST):
        return node
    fields = {name: _plain(value) for name, value in ast.iter_fields(node)}
    if fields.get("func") == ("Name", ("id", "UserError"), ("ctx", ("Load",))):
        del fields["args"]
    return (type(node).__name__, *(field for field in fields.items() if field[1] not in (None, [])))


def _hash_of(file: Path) -> str:
    data = file.read_bytes()
    if file.suffix == ".py":
        data = normalised(data.decode()).encode()
    elif file.suffix == ".jinja":
        data = re.sub(rb"\{#.*?#\}", b"", data, flags=re.DOTALL)
    return sha256_of_bytes(data)[:16]
