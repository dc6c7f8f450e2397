"""Remakes requirements.lock: what pip would install today for all dependencies (`make lock`). It installs nothing.

Run the tests afterwards, and commit the lock only if they pass.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from sysconfig import get_platform, get_python_version
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parent.parent
TORCH = "2.13.0"  # or pip takes the newest; raise it here
# The GPU libraries belong to the wheel of torch for one system: pip adds them where that wheel asks for them.
LEFT_OUT = re.compile("nvidia-|cuda-|triton", re.IGNORECASE)


def lock_lines(found: list[dict]) -> list[str]:
    """The pin of each package in pip's report, torch first, without those of one system."""
    packages = [item["metadata"] for item in found if not LEFT_OUT.match(item["metadata"]["name"])]
    pins = [f"{package['name']}=={package['version'].partition('+')[0]}" for package in packages]
    return sorted(pins, key=lambda pin: (not pin.startswith("torch=="), pin.lower()))


def download_bytes(item: dict) -> int:
    """What the file of a package weighs."""
    with urlopen(Request(item["download_info"]["url"], method="HEAD")) as answer:
        return int(answer.headers["Content-Length"])


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # pip too: the lock pins the one that the set-up uses.
    wanted = [f"torch=={TORCH}", "pip", *project["dependencies"], *project["optional-dependencies"]["dev"]]
    options = ["--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    print("Asking pip for today's versions …", flush=True)
    said = subprocess.check_output([sys.executable, "-m", "pip", "install", *options, *wanted], text=True)
    found = json.loads(said)["install"]
    lines = lock_lines(found)
    (ROOT / "requirements.lock").write_text(f"""\
# The exact versions that the tests last passed with, runtime and development together.
# Made by `make lock` with Python {get_python_version()}: what pip finds today for torch=={TORCH}, pip and all
# dependencies, without GPU libraries (they come with the wheel of torch where it needs them) and without build tags.
# `tools/setup.py` installs it into .venv, and says first what that downloads at most, as counted on {get_platform()}:
# Download: {sum(map(download_bytes, found)) / 1e6:,.0f} MB in {len(found)} files
# Don't edit this file: change pyproject.toml and remake it.
{chr(10).join(lines)}
""")
    print(f"requirements.lock: {len(lines)} packages.")


if __name__ == "__main__":
    main()
