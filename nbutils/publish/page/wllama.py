"""npm's `@wllama/wllama`, which is llama.cpp in a browser: one version, downloaded once, its files checked by hash."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from nbutils.core.errors import UserError
from nbutils.core.files import project_root, resolve, sha256_of_file, shown, written
from nbutils.core.text import first_line

VERSION = "3.13.0"
REGISTRY = "https://registry.npmjs.org"

INSIDE = "package"
"""The folder that npm packs everything in."""

PINNED = {
    "esm/index.min.js": "e7f3745ee508c111c22d178d23c52cc74016dd8cec39e4600d87e28d287d7981",
    "esm/wasm/wllama.wasm": "79ac5be917b71d50571a4f584436a9f6baf6b6e57719d094ed8bd950e9a65780",
    "LICENCE": "5866e3bd7e3cbd3f7c8bea6efd8a1e7fa7cc8de68c30f428aff7c6584a0fb720",
}
"""What the page takes of the package, each with its SHA-256."""


def wllama(given: str) -> Path:
    """A folder with the PINNED files: the `given` one, or a cache that is filled from npm's registry (3.5 MB) once.

    The registry is what `NPM_CONFIG_REGISTRY` says, as for npm. UserError for a folder or package without
    them or with others, and where the registry is out of reach.
    """
    if given:
        if wrong := _wrong(folder := resolve(given)):
            raise UserError(
                f"wllama_dir is {shown(folder)}, where {wrong}: name the unpacked package @wllama/wllama {VERSION} "
                "(`npm pack` downloads it), or leave wllama_dir empty."
            )
        return folder
    folder = project_root() / f"runs/.cache/wllama-{VERSION}"
    if _wrong(folder / INSIDE):
        with written(folder) as partial:
            _download(partial)
    return folder / INSIDE


def _wrong(folder: Path) -> str:
    """What is not as it was pinned, in words; nothing where all is."""
    for name, sha256 in PINNED.items():
        if not (folder / name).is_file():
            return f"there is no {name}"
        if sha256_of_file(folder / name) != sha256:
            return f"{name} is not that of version {VERSION}, by its hash"
    return ""


def _download(folder: Path) -> None:
    registry = (os.environ.get("NPM_CONFIG_REGISTRY") or REGISTRY).rstrip("/")
    address = f"{registry}/@wllama/wllama/-/wllama-{VERSION}.tgz"
    where = f"npm's registry at {urlsplit(address).hostname or address}"  # without a password
    way_out = f"name an unpacked @wllama/wllama {VERSION} in wllama_dir, or set page to false."
    try:
        with urlopen(address, timeout=30) as answer:
            data = io.BytesIO(answer.read())
    except (OSError, ValueError, HTTPException) as error:
        reason = first_line(getattr(error, "reason", error))
        raise UserError(f"The page needs wllama, and {where} does not give it ({reason}): {way_out}") from error
    try:
        with tarfile.open(fileobj=data) as package:
            for name in PINNED:
                package.extract(f"{INSIDE}/{name}", folder, filter="data")
        wrong = _wrong(folder / INSIDE)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, KeyError, zlib.error) as error:
        wrong = first_line(error)
    if wrong:
        raise UserError(
            f"What {where} gives as wllama {VERSION} is not what was pinned ({wrong}): nothing of it is used; {way_out}"
        )
