"""Made-up packages: as they are installed, and as wheels."""

import zipfile
from pathlib import Path

from nbutils.core.files import write_text


def installed(folder: Path, name: str, version: str, *requires: str):
    """Makes a distribution visible that is not there."""
    write_text(folder / f"{name}-{version}.dist-info" / "METADATA", _metadata(name, version, *requires))


def _metadata(name, version, *requires):
    """The text of METADATA."""
    needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"


def wheel(folder: Path, name: str, version: str, *requires: str):
    """A wheel with no module, written by hand."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as packed:
        packed.writestr(f"{info}/METADATA", _metadata(name, version, *requires))
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{info}/RECORD", "")
