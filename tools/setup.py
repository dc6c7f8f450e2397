"""Makes `.venv` from requirements.lock, and touches nothing outside it.

Works where the system's pip refuses with `externally-managed-environment`, and where `ensurepip` is missing: then the
system's pip is asked to put pip into `.venv` (`pip --python`). Prints the download's size before it downloads, does
only what has changed since the last time, and can be interrupted: what is finished is kept, and
`.venv/.smallchat.json` says so. Needs the standard library only.

    python3 tools/setup.py             what the notebooks need (`make demo`)
    python3 tools/setup.py --tests     and what only the tests need (`make test`)
"""

import sys

OLDEST_PYTHON = (3, 11)


def python_problem(version: tuple, executable: str, found: str = "") -> str:
    """Says in one sentence that this Python is too old; empty where it is not. `found` is a newer one on the PATH."""
    if tuple(version[:2]) >= OLDEST_PYTHON:
        return ""
    cure = f"say `make PYTHON={found} …`" if found else "install one and say `make PYTHON=python3.11 …`"
    return f"smallchat needs Python 3.11 or newer, and {executable} is Python {version[0]}.{version[1]}: {cure}."


if sys.version_info < OLDEST_PYTHON:  # here, before the lines that an older Python can't read
    import shutil

    newer = [name for name in ("python3.11", "python3.12", "python3.13", "python3.14") if shutil.which(name)]
    sys.exit(python_problem(sys.version_info, sys.executable, newer[0] if newer else ""))

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = {"packages": "requirements.lock", "tests": "tests/requirements-no-deps.txt"}
OLDEST_PIP = (22, 3)  # the first with `pip --python`


class SetupError(Exception):
    """One sentence that the user can act on."""


# What is wanted, and what the last set-up left behind


def digest(text: str) -> str:
    """Hashes the lines that matter, so that a changed comment installs nothing."""
    lines = [line.split(" #")[0].strip() for line in text.splitlines()]
    return hashlib.sha256("\n".join(line for line in lines if line and not line.startswith("#")).encode()).hexdigest()


def project_digest(pyproject: str) -> str:
    """Hashes what an installation depends on: the settings of ruff or pytest in the same file are none of it."""
    table = tomllib.loads(pyproject)
    parts = [table.get("build-system"), table.get("project"), table.get("tool", {}).get("setuptools")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def wanted_state(root: Path, tests: bool) -> dict[str, str]:
    """What `.venv` should hold: one key for each step, `environment` first."""
    state = {
        # Scripts in .venv hold its path, and its packages the Python version: a change of either needs a new one.
        "environment": f"python{sys.version_info[0]}.{sys.version_info[1]} {root}",
        "packages": digest((root / FILES["packages"]).read_text()),
        "project": project_digest((root / "pyproject.toml").read_text()),
    }
    if tests:
        state["tests"] = digest((root / FILES["tests"]).read_text())
    return state


def read_stamp(venv: Path) -> dict[str, str]:
    """What the last set-up finished; empty where there was none, or where its interpreter has gone since."""
    if not (venv / "bin" / "python").exists():  # False for a dangling link too: the system's Python was replaced
        return {}
    try:
        stamp = json.loads((venv / ".smallchat.json").read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(venv: Path, stamp: dict[str, str]) -> None:
    """Written to a temporary name and renamed: an interruption leaves the old stamp or the new one."""
    temporary = venv / ".smallchat.json.tmp"
    temporary.write_text(json.dumps(stamp, indent=2) + "\n")
    temporary.replace(venv / ".smallchat.json")


def missing_steps(stamp: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """The steps to take, in order. A new environment needs all of them."""
    if "environment" in stamp and stamp["environment"] != wanted["environment"]:
        return list(wanted)
    return [step for step, value in wanted.items() if stamp.get(step) != value]


# Running pip


def pip_environment(venv: Path) -> dict[str, str]:
    """The user's own pip settings (index, proxy, certificates), less those that would install outside `.venv`."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")}
    environment["PIP_USER"] = "0"
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    # Kept until the set-up is finished, so that an interrupted download is not begun again.
    environment.setdefault("PIP_CACHE_DIR", str(venv / "pip-cache"))
    return environment


def run(command: list[str], environment: dict[str, str], failure: str) -> None:
    """Runs a command whose output the user sees; `failure` is the sentence for a non-zero status."""
    if subprocess.run(command, env=environment, stdin=subprocess.DEVNULL).returncode != 0:
        raise SetupError(failure)


def base_python() -> str:
    """The interpreter that .venv is made from, also where this program runs on .venv's own (an activated shell)."""
    return str(getattr(sys, "_base_executable", "") or sys.executable)


def pip_version_problem(python: str, output: str) -> str:
    """Says in one sentence that pip is absent or too old; empty where it is not. `output` is of `pip --version`."""
    found = re.match(r"pip (\d+)\.(\d+)", output)
    if not found:
        return (
            f"{python} has no pip: install it (on Debian and Ubuntu: `apt-get install python3-pip`) and say it again."
        )
    if (int(found[1]), int(found[2])) < OLDEST_PIP:
        return f"{python} has pip {found[1]}.{found[2]}, and the set-up needs pip 22.3 or newer: upgrade it."
    return ""


def make_environment(venv: Path, replace: bool) -> None:
    """`.venv` with a pip in it, which alone is used from then on."""
    python, environment = venv / "bin" / "python", pip_environment(venv)
    ours = (venv / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}").is_dir() and python.exists()
    remove_half_installed(venv)
    if not replace and ours and pip_version(str(python), environment):
        return
    complete = importlib.util.find_spec("ensurepip") is not None
    options = ["--clear"] if venv.exists() and (replace or not ours) else []  # of another Python, or one that is gone
    options += [] if complete else ["--without-pip"]
    run([base_python(), "-m", "venv", *options, str(venv)], environment, f"{venv} can't be made.")
    if not complete:
        problem = pip_version_problem(base_python(), pip_version(base_python(), environment))
        if problem:
            raise SetupError(problem)
        command = [base_python(), "-m", "pip", "--python", str(python), "install", "-qq", "pip"]
        run(command, environment, network_failure("pip"))


def pip_install(venv: Path, *arguments: str) -> list[str]:
    """The command with which the environment's own pip installs something."""
    return [str(venv / "bin" / "python"), "-m", "pip", "install", *arguments]


def pip_version(python: str, environment: dict[str, str]) -> str:
    """What a Python's pip says of its version; empty where it has none."""
    done = subprocess.run([python, "-m", "pip", "--version"], env=environment, capture_output=True, text=True)
    return done.stdout


def download_size(requirements: str) -> str:
    """The line `# Download: …` of a file of requirements, in words."""
    found = re.search(r"^# Download: (.+)$", requirements, re.MULTILINE)
    return f"at most {found[1]}" if found else "size unknown"


def network_failure(what: str) -> str:
    return (
        f"{what} can't be installed: see pip's words above, check the network, and say it again; what is done is kept."
    )


def remove_half_installed(venv: Path) -> None:
    """pip writes a package's RECORD last: one without it was interrupted, and pip would take it for installed."""
    for packages in venv.glob("lib/python*/site-packages"):
        for half in packages.glob("*.dist-info"):
            if not (half / "RECORD").exists():
                shutil.rmtree(half)
        for aside in packages.glob("~*"):  # where pip moves what it is about to replace
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink()


# The steps


def install_arguments(step: str, root: Path) -> list[str]:
    """What pip is asked for in one step."""
    # The lock with dependencies, although everything is pinned: it names no GPU library and nothing that only one
    # system needs, so on Linux pip adds what the wheel of torch asks for there, on macOS what IPython does.
    return [*([] if step == "packages" else ["--no-deps"]), "-r", str(root / FILES[step])]


def install_project(venv: Path, root: Path) -> None:
    """Puts the working tree on .venv's path. The build's by-products go into .venv as well, not beside the code."""
    build = venv / "build"
    build.mkdir(exist_ok=True)
    config = build / "extra.cfg"
    config.write_text(f"[egg_info]\negg_base = {build}\n[build]\nbuild_base = {build}\n")
    environment = pip_environment(venv) | {"DIST_EXTRA_CONFIG": str(config)}
    command = pip_install(venv, "-qq", "--no-deps", "--no-build-isolation", "-e", ".")
    if subprocess.run(command, env=environment, cwd=root, stdin=subprocess.DEVNULL).returncode != 0:
        raise SetupError("smallchat itself can't be installed: see pip's words above; pyproject.toml may be faulty.")
    shutil.rmtree(build)


@contextlib.contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Two `make`s at once take turns. The lock is held on the folder itself, so that no lock file is left behind."""
    handle = os.open(root, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a network drive that knows no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def set_up(root: Path, tests: bool) -> None:
    """Takes the steps that are missing; says nothing where there are none."""
    venv = root / ".venv"
    wanted = wanted_state(root, tests)
    stamp = read_stamp(venv)
    steps = missing_steps(stamp, wanted)
    if not steps:
        return
    began = time.monotonic()
    replace = "environment" in stamp and "environment" in steps
    stamp = {} if replace else stamp
    for step in steps:
        if step in FILES:
            print(f"Download: {download_size((root / FILES[step]).read_text())}, into .venv.", flush=True)
    make_environment(venv, replace)
    stamp["environment"] = wanted["environment"]
    write_stamp(venv, stamp)
    quiet = [] if sys.stdout.isatty() else ["-qq"]  # a person sees progress bars, a log only what went wrong
    for step in steps:
        if step == "project":
            install_project(venv, root)
        elif step in FILES:
            run(
                pip_install(venv, *quiet, *install_arguments(step, root)),
                pip_environment(venv),
                network_failure("The packages"),
            )
        stamp[step] = wanted[step]
        write_stamp(venv, stamp)
    shutil.rmtree(venv / "pip-cache", ignore_errors=True)
    print(f".venv is ready ({time.monotonic() - began:.0f} s).", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes .venv from requirements.lock, and touches nothing outside it.")
    parser.add_argument("--tests", action="store_true", help="also install what only the tests need")
    arguments = parser.parse_args()
    try:
        with one_at_a_time(ROOT):
            set_up(ROOT, arguments.tests)
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: interrupted; say it again, and it goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
