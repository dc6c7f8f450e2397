"""Made-up packages: as they are installed, and as wheels."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path


def installed(folder: Path, name: str, version: str, *requires: str) -> None:
    """Makes a distribution visible that is not there."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(_metadata(name, version, *requires))


def _metadata(name: str, version: str, *requires: str) -> str:
    needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"


def wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """A wheel with one module, written by hand."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": _metadata(name, version, *requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as packed:
        for path, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(text)}\n"
            packed.writestr(path, text)
        packed.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
