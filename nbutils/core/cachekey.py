"""The cache key of a stage: everything that its result depends on, each part by its own hash."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from nbutils.core.files import sha256_of_bytes, sha256_of_json
from nbutils.core.notebooks import StageSpec, code_cells, notebook_path, spec
from nbutils.core.record import current_hash, matches, paused_model, stage_record
from nbutils.core.settings import Settings

DISPLAY_ONLY = "display"
"""Modules of this name only show what is there; they stand outside every cache key."""

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of the package whose modules count."""

PARAMETER, MODULE, UPSTREAM = "parameter ", "module ", "upstream file "
"""What the words of `changes` begin with."""

_LONGEST = 60
"""Characters of a value that the words of a change show."""


def key_parts(stage: StageSpec, settings: Settings) -> dict[str, Any]:
    """What the stage's result depends on: code cells, result parameters, reached modules, upstream files."""
    cells = [cell["source"] for cell in code_cells(notebook_path(stage)) if "parameters" not in cell["tags"]]
    return {
        "code": sha256_of_json([normalised(source) for source in cells]),
        "parameters": settings.result_parameters(),
        "modules": module_hashes(cells),
        "upstream": upstream_hashes(stage, settings.run_path),
    }


def key_of(parts: dict[str, Any]) -> str:
    """One hash over all parts."""
    return sha256_of_json(parts)


def stage_key(name: str, settings: Settings) -> tuple[str, dict[str, Any]]:
    """Key and parts for a stage by name."""
    parts = key_parts(spec(name), settings)
    return key_of(parts), parts


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs between two sets of key parts, in words."""
    found = []
    if before["code"] != after["code"]:
        found.append("the notebook's code cells")
    found += [PARAMETER + words for words in _differences(before["parameters"], after["parameters"])]
    for part, kind in (("modules", MODULE), ("upstream", UPSTREAM)):
        names = sorted(set(before[part]) | set(after[part]))
        found += [kind + name for name in names if before[part].get(name) != after[part].get(name)]
    return found


def _differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """'name (old → new)' for each value that differs, in a mapping for each of its own."""
    for name in sorted(set(before) | set(after)):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        mappings = [{} if value is None else value for value in (old, new)]
        if all(isinstance(value, dict) for value in mappings):
            yield from _differences(mappings[0], mappings[1], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name} ({_short(old, new)} → {_short(new, old)})"


def _short(value: Any, other: Any) -> str:
    """A value in few characters: of a long one the part at which it begins to differ from the other."""
    text = repr(value)
    if len(text) <= _LONGEST:
        return text
    pairs = enumerate(zip_longest(text, repr(other)))
    differs = next((place for place, (here, there) in pairs if here != there), 0)
    start = max(0, differs - _LONGEST // 3)
    return f"{'…' if start else ''}{text[start : start + _LONGEST]}{'…' if start + _LONGEST < len(text) else ''}"


def upstream_hashes(stage: StageSpec, run: Path) -> dict[str, str]:
    """Hashes of the files that a stage reads from earlier ones, as they are on disk now."""
    hashes: dict[str, str] = {}
    for name, patterns in stage.reads.items():
        record = stage_record(run, name) or {"outputs": {}, "status": "absent", "facts": {}}
        model = paused_model(run / name, record) if record["status"] == "paused" else None
        if model is not None:
            patterns = (*patterns, f"{model.relative_to(run / name)}/*")
        hashes |= {
            f"{name}/{file}": current_hash(run / name, file, entry)
            for file, entry in record["outputs"].items()
            if matches(file, patterns)
        }
    return hashes


@lru_cache(maxsize=1024)
def normalised(source: str) -> str:
    """The syntax tree of Python source without comments, docstrings and layout; IPython's magics become strings."""
    tree = _tree(source)
    if tree is None:
        return source
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _drop_docstring(node)
    return repr(_plain(tree))


def _plain(node: Any) -> Any:
    """A syntax tree as nested tuples, without empty fields: `ast.dump` writes others in each version of Python."""
    if isinstance(node, ast.AST):
        fields = ((name, _plain(value)) for name, value in ast.iter_fields(node) if value not in (None, []))
        return (type(node).__name__, *fields)
    return [_plain(item) for item in node] if isinstance(node, list) else node


def module_hashes(sources: list[str]) -> dict[str, str]:
    """The hash of every module and resource file that the sources reach, by its dotted name or path."""
    return {name: _file_hash(file) for name, file in sorted(reached_modules(sources).items())}


def reached_modules(sources: list[str]) -> dict[str, Path]:
    """Every `nbutils` module that the sources import, directly or through others, and its file.

    A resource beside a module (a template) counts where the module's code holds its file name as a string.
    """
    waiting = [name for source in sources for name in _imports(source, "")]
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        file = _module_file(name)
        if file is None or name in found or name.rpartition(".")[2] == DISPLAY_ONLY:
            continue
        found[name] = file
        text = file.read_text(encoding="utf-8")
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        waiting += [*_imports(text, package), name.rpartition(".")[0]]
        found |= {f"{package}/{path.name}": path for path in _resources(text, file.parent)}
    return found


def _drop_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    node.body = [
        statement
        for statement in node.body
        if not (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        )
    ]


def _tree(source: str) -> ast.Module | None:
    for text in (source, _without_magics(source)):
        try:
            return ast.parse(text)
        except SyntaxError:
            continue
    return None


def _without_magics(source: str) -> str:
    if source.startswith("%%"):
        return f"__magic__({source!r})"
    lines = source.split("\n")
    for number, line in enumerate(lines):
        code = line.lstrip()
        if code[:1] in {"%", "!"}:
            lines[number] = line[: len(line) - len(code)] + f"__magic__({code!r})"
    return "\n".join(lines)


@lru_cache(maxsize=1024)
def _imports(source: str, package: str) -> frozenset[str]:
    """Names of `nbutils` modules that the source imports or starts as a program (`-m nbutils.train.worker`)."""
    tree = _tree(source)
    names: set[str] = set()
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("nbutils."):
            names.add(node.value)
    return frozenset(name for name in names if name == "nbutils" or name.startswith("nbutils."))


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _module_file(name: str) -> Path | None:
    """A module's file, found without importing anything."""
    first, *rest = name.split(".")
    if first != "nbutils" or not all(part.isidentifier() for part in rest):
        return None
    path = PACKAGE.joinpath(*rest)
    candidates = (path / "__init__.py", path.with_name(f"{path.name}.py") if rest else path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def _resources(source: str, folder: Path) -> list[Path]:
    names = {file.name: file for file in folder.iterdir() if file.is_file() and file.suffix != ".py"}
    code = normalised(source)
    return [file for name, file in names.items() if name in code]


def _file_hash(file: Path) -> str:
    stat = file.stat()
    return _hash_at(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1024)
def _hash_at(file: Path, _mtime_ns: int, _size: int) -> str:
    data = file.read_bytes()
    if file.suffix == ".py":
        data = normalised(data.decode()).encode()
    elif file.suffix == ".jinja":
        data = re.sub(rb"\{#.*?#\}", b"", data, flags=re.DOTALL)
    return sha256_of_bytes(data)[:16]
