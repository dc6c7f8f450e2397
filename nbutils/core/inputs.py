"""Files outside the run folder that a stage reads: hashed, since the same name may hold another content tomorrow."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

from nbutils.core.files import resolve, sha256_of_file, shown

FILES = "files"
"""The entry of a stage's result parameters that holds their hashes."""

MODEL_FILES = ("*.safetensors", "*.bin", "*.gguf", "*.json", "*.jinja", "*.model", "*.txt")
"""Files of a model's folder on which its answers depend; folders inside it are others' business."""

TOKENIZER_FILES = (
    *("tokenizer*", "*.model", "*.jinja", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
    "config.json",
)
"""Files of a model's folder that make its tokenizer (`config.json` names its class)."""


def local_hashes(paths: Iterable[str | Path]) -> dict[str, str]:
    """Path as shown → hash of every file among `paths` and below the folders among them; what is not there has none."""
    found = [resolve(path) for path in paths if str(path)]
    files = (file for path in found for file in (sorted(path.rglob("*")) if path.is_dir() else [path]))
    return {shown(file): hash_of(file) for file in files if file.is_file()}


def model_hashes(model: str | Path, names: tuple[str, ...] = MODEL_FILES) -> dict[str, str]:
    """File name → hash of what a local model is made of: a GGUF file, or those in its folder that fit `names`.

    Nothing for a hub id or `tiny`: their names say which they are.
    """
    if not str(model):
        return {}
    path = resolve(model)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {
        file.name: hash_of(file)
        for file in files
        if file.is_file() and (file == path or any(fnmatch(file.name, name) for name in names))
    }


def hash_of(path: Path) -> str:
    """The first 16 digits of a file's sha256, read again in this process only where its time or size has changed."""
    stat = path.stat()
    return _hash_once(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _hash_once(path: Path, _changed: int, _size: int) -> str:
    return sha256_of_file(path)[:16]
