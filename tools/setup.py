"""Makes `.venv` from requirements.lock, and touches nothing outside it. Needs the standard library only.

Prints the download's size before it downloads, does only what has changed since the last time, and can be interrupted:
`.venv/.smallchat.json` says what is finished. Works where the system's pip refuses with
`externally-managed-environment`, and where `ensurepip` is missing: then the system's pip puts a pip into `.venv`.

    python3 tools/setup.py             what the notebooks need (`make demo`)
    python3 tools/setup.py --tests     and what only the tests need (`make test`)
"""

import sys
from sysconfig import get_python_version

OLDEST, NEWEST = (3, 11), (3, 14)  # what the lock's torch has wheels for
VERSION = get_python_version()

if not OLDEST <= sys.version_info[:2] <= NEWEST:  # here, before what an older Python lacks
    sys.exit(
        f"smallchat needs Python 3.11 to 3.14, and {sys.executable} is Python {VERSION}: install one, or name one "
        "that is there (`make PYTHON=python3.12 …`)."
    )

import contextlib
import fcntl
import importlib.util
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin/python"
PACKAGES = VENV / f"lib/python{VERSION}/site-packages"
STAMP = VENV / ".smallchat.json"
LOCK, TESTS = "requirements.lock", "tests/requirements-no-deps.txt"
# Scripts in .venv hold its path, and its packages the Python version: a change of either needs a new one.
ENVIRONMENT = f"python{VERSION} {ROOT}"


def pins(file: str) -> list[str]:
    """The lines that matter: a changed comment installs nothing."""
    return [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]


def finished() -> dict[str, object]:
    """What earlier set-ups have finished; nothing where `.venv` or the interpreter behind it has gone since."""
    try:
        return dict(json.loads(STAMP.read_text())) if PYTHON.exists() else {}
    except (OSError, ValueError):
        return {}


def pip_environment() -> dict[str, str]:
    """The user's own pip settings (index, proxy, certificates), less those that would install outside `.venv`."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")}
    # The cache is there until the set-up is finished, so that an interrupted download does not start again.
    return {"PIP_CACHE_DIR": f"{VENV}/pip-cache", **kept, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(failure: str, *command: str | Path) -> None:
    """Runs a command whose output the user sees; `failure` is the last sentence where it fails."""
    if subprocess.run(command, env=pip_environment(), stdin=subprocess.DEVNULL).returncode:
        sys.exit(f"set-up: {failure}")


def make_environment(clear: bool) -> None:
    """`.venv` with a pip in it, which alone is used from then on, and with this folder on its path."""
    base = getattr(sys, "_base_executable", sys.executable)  # this program may run on .venv's own Python
    complete = importlib.util.find_spec("ensurepip") is not None
    options = ["--clear"] * clear + ["--without-pip"] * (not complete)
    run(f"{VENV} can't be made.", base, "-m", "venv", *options, VENV)
    if not complete:
        failure = (
            f"pip can't be installed: {base} needs a pip of its own, 22.3 or newer (on Debian and Ubuntu: `apt-get "
            "install python3-pip`), and a network."
        )
        run(failure, base, "-m", "pip", "--python", PYTHON, "install", "-qq", "pip")
    (PACKAGES / "smallchat.pth").write_text(f"{ROOT}\n")


def install(file: str) -> None:
    """Installs what a file of requirements names."""
    # pip writes a package's RECORD last: one without it was interrupted, and pip would take it for installed.
    for half in PACKAGES.glob("*.dist-info"):
        if not (half / "RECORD").exists():
            shutil.rmtree(half)
    # The lock with dependencies, although everything is pinned: it names no GPU library and nothing that only one
    # system needs, so on Linux pip adds what the wheel of torch asks for there, on macOS what IPython does.
    options = ["--no-deps"] * (file == TESTS) + ["-qq"] * (not sys.stdout.isatty())
    failure = "The packages can't be installed: see pip's words above, check the network, and say it again"
    run(f"{failure}; what is done is kept.", PYTHON, "-m", "pip", "install", *options, "-r", ROOT / file)


def main(tests: bool) -> None:
    """Takes the steps that are missing; says nothing where there are none."""
    began, done = time.monotonic(), finished()
    new = done.get("environment") != ENVIRONMENT
    files = [file for file in (LOCK, TESTS)[: 1 + tests] if new or done.get(file) != pins(file)]
    for file in files:
        size = re.search("# Download: (.+)", (ROOT / file).read_text())
        print(f"Download: at most {size[1] if size else 'as pip says'}, into .venv.", flush=True)
    if new and VENV.is_symlink():
        sys.exit("set-up: .venv is a link to somewhere else, which stays as it is: remove the link, and say it again.")
    if new:
        make_environment(clear=bool(done) or not (PYTHON.exists() and PACKAGES.exists()))
        done = {"environment": ENVIRONMENT}
    for file in files:
        STAMP.write_text(json.dumps(done))
        install(file)
        done[file] = pins(file)
    if files:
        STAMP.write_text(json.dumps(done))
        shutil.rmtree(VENV / "pip-cache", ignore_errors=True)
        print(f".venv is ready ({time.monotonic() - began:.0f} s).")


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # a network drive that knows no locks
        fcntl.flock(os.open(ROOT, os.O_RDONLY), fcntl.LOCK_EX)  # until this process ends: two `make`s take turns
    try:
        main("--tests" in sys.argv)
    except KeyboardInterrupt:
        sys.exit("\nset-up: interrupted; say it again, and it goes on from here.")
