"""Paths and files: where relative paths start, and writes that no reader ever sees half done."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError

Json = dict[str, Any]
"""A JSON object."""

KAGGLE = "SMALLCHAT_KAGGLE_ROOT"
"""Environment variable: a folder that stands in for `/kaggle` (tests simulate Kaggle below it)."""


PLACE = Path(__file__).resolve().parents[2]
"""The folder of the package: a clone, or where a bundle was unpacked."""


def kaggle_root() -> Path:
    """The folder that holds `input/` and `working/` on Kaggle; elsewhere it does not exist."""
    return Path(os.environ.get(KAGGLE) or "/kaggle")


def project_root() -> Path:
    """The folder at which relative paths start: Kaggle's working folder, the clone, or the current directory."""
    working = kaggle_root() / "working"
    if working.is_dir():
        return working
    return PLACE if (PLACE / "pyproject.toml").is_file() else Path.cwd()


def resolve(path: str | Path) -> Path:
    """An absolute path; a relative one starts at the project root, whatever the working directory is.

    Kaggle mounts a data set as `input/SLUG` or `input/datasets/OWNER/SLUG`: a path that names one finds the other, too.
    UserError for a path that cannot be looked up: too long, of no user, or in a folder that is closed to us.
    """
    try:
        found = project_root() / Path(path).expanduser()
        found.is_dir()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"There is no way to '{path}' ({getattr(error, 'strerror', error)}): give another path."
        ) from None
    attached = kaggle_root() / "input"
    if not found.is_relative_to(attached) or found.exists():
        return found
    inside = found.relative_to(attached)
    others = [owner / inside for owner in attached.glob("datasets/*")]
    if inside.parts[:1] == ("datasets",) and inside.parts[2:]:
        others.append(attached.joinpath(*inside.parts[2:]))
    return next((other for other in others if other.exists()), found)


def shown(path: str | Path) -> str:
    """The path as a person would type it: relative to the project root where it is below it."""
    path = Path(path)
    root = project_root()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def sha256_of_bytes(data: bytes) -> str:
    """Hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hex digest of a JSON value, independent of the order of keys."""
    return sha256_of_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode())


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(path: Path) -> str:
    """As `sha256_of_file`, but a file is read again in this process only where its time or size has changed."""
    stat = path.stat()
    return _hash_once(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _hash_once(path: Path, _changed: int, _size: int) -> str:
    return sha256_of_file(path)


def local_hashes(paths: Iterable[str | Path]) -> dict[str, str]:
    """Path as shown → 16 digits of the hash of every file among `paths` and below the folders among them.

    What is not there has none.
    """
    found = [resolve(path) for path in paths if str(path)]
    files = (file for path in found for file in ([path] if path.is_file() else files_below(path)))
    return {shown(file): hash_of(file)[:16] for file in files}


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path` (file or folder) and renames it over `path` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        if path.is_dir() and partial.is_dir():
            old = partial.with_stem(f"{partial.stem}-old")
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old)
        else:
            os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """UserError where the block cannot write to `path` (file or folder), on a full disk for example."""
    try:
        yield
    except OSError as error:
        # of copytree's many files the first
        why = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or error
        raise UserError(f"{shown(path)} cannot be written ({why}): make room there, and run this again.") from error


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """As `replaced`. UserError where that cannot be written."""
    with writing(path), replaced(path) as partial:
        yield partial


def link(file: str | Path, to: str | Path) -> None:
    """Copies a file, without a second copy of its bytes where the disk has hard links."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copy2(file, to)


def link_tree(source: Path, target: Path) -> None:
    """Copies a folder into another, its files as `link` does. UserError where that cannot be written."""
    with writing(target):
        shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text under a temporary name, flushes it to the disk and renames it."""
    with replaced(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Writes readable JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[Json]) -> None:
    """Writes a JSON-lines file atomically."""
    write_text(path, "".join(map(_line, rows)))


def append_jsonl(path: Path, row: Json) -> None:
    """Appends one row to a JSON-lines file in one write."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(row))


def _line(row: Json) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def read_jsonl(path: Path) -> list[Json]:
    """The rows of a JSON-lines file; a half-written last line, as a killed process leaves it, is passed over.

    ValueError names any other line that is no JSON.
    """
    *lines, _ = path.read_bytes().split(b"\n")  # of bytes: the cut may be within a character
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {number} is no JSON: {error}") from None
    return rows
