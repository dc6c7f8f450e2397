"""`nbutils` and the notebooks as one archive that fits into a notebook's cell, and the cell that unpacks it."""

from __future__ import annotations

import base64
import io
import lzma
import tarfile
import textwrap
import tomllib
from importlib import metadata
from pathlib import Path

from nbutils.core.files import sha256_of_bytes
from nbutils.core.notebooks import notebook_path
from nbutils.core.run.key import PACKAGE
from nbutils.core.run.record import git_commit
from nbutils.core.stages import stages
from nbutils.kaggle.start import REQUIREMENTS

COMMIT = "commit.txt"
"""In the archive: the commit that it was made from."""

CELL = '''\
# smallchat as it was bundled. This cell unpacks it, looks at the machine and installs what the image lacks.
ARCHIVE = """
{archive}
"""

import base64, io, pathlib, sys, tarfile, tempfile

folder = pathlib.Path(tempfile.gettempdir()) / "smallchat-{digest}"
if not (folder / "{commit}").is_file():
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(ARCHIVE)), mode="r:xz") as packed:
        packed.extractall(folder)
sys.path.insert(0, str(folder))

from nbutils.kaggle.start import Bundle, start

session = start(Bundle(
    {facts},
))
'''


def first_cell(archive: bytes, facts: str) -> str:
    """The source of a bundle's first cell; `facts` are the fields of `nbutils.kaggle.start.Bundle`."""
    text = "\n".join(textwrap.wrap(base64.b64encode(archive).decode(), 120))
    digest = sha256_of_bytes(archive)[:12]
    return CELL.format(archive=text, digest=digest, commit=COMMIT, facts=facts)


def make_archive() -> bytes:
    """The package, the notebooks and the list of requirements, packed; the same bytes for the same files."""
    files = {
        f"nbutils/{path.relative_to(PACKAGE)}": path.read_bytes()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for stage in stages():
        files[f"notebooks/{stage.file}"] = notebook_path(stage).read_bytes()
    files[REQUIREMENTS] = "\n".join(requirements()).encode()
    files[COMMIT] = (git_commit() or "").encode()
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as packed:
        # The commit last: where it was unpacked, all else was.
        for name in sorted(files, key=lambda name: (name == COMMIT, name)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(files[name]), 0o644
            packed.addfile(entry, io.BytesIO(files[name]))
    return lzma.compress(raw.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def requirements() -> list[str]:
    """What smallchat needs at run time: from `pyproject.toml` of the clone, or from the installed package."""
    project = Path(PACKAGE).parent / "pyproject.toml"
    if project.is_file():
        return list(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"])
    return [line for line in metadata.requires("smallchat") or [] if "extra ==" not in line]
