"""Remakes requirements.lock: what a fresh environment with all dependencies holds today (`make lock`).

Run the tests afterwards, and commit the lock only if they pass.
"""

import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "2.13.0"  # installed first, or pip takes the newest; raise it here
# The GPU libraries belong to the wheel of torch for one system: pip adds them where that wheel asks for them.
LEFT_OUT = re.compile(r"^(nvidia-|cuda-|triton|smallchat)", re.IGNORECASE)
HEADER = """\
# The exact versions that the tests last passed with, runtime and development together.
# Made by `make lock` with Python {python}: a fresh environment, torch=={torch} first, then `.[dev]`, then a freeze
# without GPU libraries (they come with the wheel of torch where it needs them) and without build tags such as +cpu.
# `tools/setup.py` installs it into .venv, and says first what that downloads at most, as counted on {system}:
# Download: {size}
# Don't edit this file: change pyproject.toml and remake it.
"""


def lock_lines(frozen: str) -> list[str]:
    """Pins out of the output of `pip freeze`, torch first. Raises ValueError for any other kind of line."""
    pins = []
    for line in frozen.splitlines():
        line = line.strip()
        if not line or line.startswith(("#", "-e ")) or LEFT_OUT.match(line):
            continue
        pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([^+\s]+)(\+\S+)?", line)
        if not pin:
            raise ValueError(f"`pip freeze` printed {line!r}, which is no exact version: install that from an index.")
        pins.append(f"{pin[1]}=={pin[2]}")
    return sorted(pins, key=lambda pin: (not pin.startswith("torch=="), pin.lower()))


def download_size(said: str) -> str:
    """The size of all that `pip install` says it fetched or took from its cache."""
    found = re.findall(r"\.(?:whl|gz|zip) \(([\d.]+) ([kMG])B\)", said)
    megabytes = sum(float(number) * {"k": 1e-3, "M": 1, "G": 1e3}[unit] for number, unit in found)
    return f"{megabytes:,.0f} MB in {len(found)} files"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        venv, source = Path(folder) / "venv", Path(folder) / "source"
        (source / "nbutils").mkdir(parents=True)  # only the dependencies count; building here leaves the tree clean
        (source / "nbutils" / "__init__.py").touch()
        for name in ("README.md", "LICENSE"):
            (source / name).touch()
        shutil.copy(ROOT / "pyproject.toml", source)
        python = str(venv / "bin" / "python")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
        # A pip inside the environment: the lock pins it too, and the set-up uses that one everywhere.
        subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "-qq", "pip"], check=True)
        said = ""
        for wanted in (f"torch=={TORCH}", f"{source}[dev]"):
            print(f"Installing {wanted.replace(str(source), '.')} …", flush=True)
            said += subprocess.check_output([python, "-m", "pip", "install", wanted], text=True)
        frozen = subprocess.run([python, "-m", "pip", "freeze", "--all"], check=True, capture_output=True, text=True)
    header = HEADER.format(python=f"{sys.version_info[0]}.{sys.version_info[1]}", torch=TORCH,
                           system=f"{platform.system()} {platform.machine()}", size=download_size(said))  # fmt: skip
    lines = lock_lines(frozen.stdout)
    (ROOT / "requirements.lock").write_text(header + "\n".join(lines) + "\n")
    print(f"requirements.lock: {len(lines)} packages.")


if __name__ == "__main__":
    main()
