"""The project's own files agree with one another, and carry nothing of the machine that they were written on."""

import re
import subprocess
import tomllib

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT
from tests.test_setup import load

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK, TEST_MODELS = (
    [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    for file in ("requirements.lock", "tests/requirements-no-deps.txt")
)
CONDA_NAMES = {"torch": "pytorch"}  # where conda-forge calls a package otherwise


def normal(requirement):
    """A distribution's name alone, as package indexes compare names."""
    return canonicalize_name(Requirement(requirement).name)


PINS = {normal(line): line.partition("==")[2] for line in LOCK}
DEPENDENCIES = PYPROJECT["project"]["dependencies"] + PYPROJECT["project"]["optional-dependencies"]["dev"]


def git(*arguments):
    """What git says."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout


needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")


@needs_git
def test_what_a_run_or_a_tool_makes_is_ignored_and_code_is_not():
    made = ["runs/demo/run.json", ".venv/bin/python", "nbutils/core/__pycache__/x.pyc"]
    assert git("check-ignore", "--no-index", *made, *(ROOT / "nbutils").glob("*/__init__.py")).split() == made


# Each is written so that it does not find itself.
FORBIDDEN = {
    "a package registry's host": r"py[p]i\.org|python[h]osted\.org|registry\.npm[j]s\.org|deb\.debian[.]org"
    r"|anaconda[.](?:org|com)",
    "an absolute path of one machine": r"(?<![\w./~-])/(?:work|root|home/\w+|Users/\w+|opt/(?:wheels|py[p]i))/",
    "an access token": r"\b(?:hf_[A-Za-z0-9]{30,}|KGAT_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{36}|AKIA[0-9A-Z]{16})\b",
}


def hits(text):
    """Which kinds of what is forbidden stand in a text."""
    return [what for what, pattern in FORBIDDEN.items() if re.search(pattern, text)]


@needs_git
def test_no_committed_file_names_what_is_forbidden():
    """In no text that is, or would be, in a commit."""
    names = git("grep", "--untracked", "--files-with-matches", "-Iz", "").split("\0")[:-1]
    found = {name: hits((ROOT / name).read_text(encoding="utf-8", errors="replace")) for name in names}
    assert found.pop("nbutils/publish/page/wllama.py") == ["a package registry's host"]  # npm's own default
    assert len(found) > 100 and not {name: what for name, what in found.items() if what}


def test_the_forbidden_patterns_find_what_they_forbid():
    assert hits('"/' + 'work/main/x"') == ["an absolute path of one machine"] == hits("in /" + "root/.cache")
    assert hits("https://py" + "pi.org/simple") == ["a package registry's host"]
    assert hits("hf_" + "a" * 34) == ["an access token"]
    assert hits("/kaggle/working/runs, nbutils/work/x, ~/work/x") == []


# Dependencies


def test_the_lock_holds_exact_versions_for_every_system():
    assert LOCK[0] == "torch==2.13.0"
    for line in (*LOCK, *TEST_MODELS):
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), f"not an exact, portable version: {line}"
        assert not re.match(r"nvidia|cuda|triton", line, re.IGNORECASE), f"belongs to one system's torch: {line}"
    assert len(PINS) == len(LOCK), "a package is pinned twice"
    assert "smallchat" not in PINS and {"pip", "setuptools"} <= PINS.keys()


@pytest.mark.parametrize("requirement", DEPENDENCIES)
def test_every_dependency_is_locked_within_its_bounds(requirement):
    assert Requirement(requirement).specifier.contains(PINS[normal(requirement)]), "run `make lock`"


def test_every_dependency_stands_in_the_conda_environment_with_a_reason():
    lines = re.findall(r"^ +- ([\w.-]+)([^#\n]*?) *# (.{10,})$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    versions = {canonicalize_name(name): version for name, version, _ in lines}
    for requirement in DEPENDENCIES:
        name = CONDA_NAMES.get(normal(requirement), normal(requirement))
        assert versions[name] == requirement.removeprefix(Requirement(requirement).name)
    *names, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert len(names) + len(pip["pip"]) == len(lines), "a line has no reason"


def test_what_a_gpu_machine_is_brought_is_locked_and_none_of_its_own():
    needed = {canonicalize_name(name) for name in load("gpu_wheels").NEEDED}
    own = {"torch", "transformers", "accelerate", "tokenizers", "numpy", "scipy", "pyarrow", "pandas", "matplotlib"}
    assert needed <= PINS.keys() and not needed & own


# Commands and tools


def test_the_makefile_explains_its_targets_and_the_files_that_it_needs_are_there():
    text = (ROOT / "Makefile").read_text()
    explained = re.findall(r"^# .+\n([a-z-]+):", text, re.MULTILINE)
    assert explained == re.search(r"^\.PHONY: (.+)", text, re.MULTILINE)[1].split()
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"  {target} " in listed for target in explained)
    assert all((ROOT / name).exists() for name in re.findall(r"(?:tools|params)/\w+\.\w+", text))


def test_ci_can_be_run():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    # ../shared is not on GitHub: with CI=true its tests would fail, not skip.
    assert workflow["jobs"]["test"]["steps"][-1] == {"run": "make lint test", "env": {"CI": "false"}}


def test_make_lab_stays_on_this_machine_and_keeps_its_token():
    told = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--ip=127.0.0.1" in told and "token" not in told.lower() and "password" not in told.lower()


def test_pre_commit_makes_an_executed_notebook_the_committed_one(tmp_path):
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert all(repo["repo"] == "local" for repo in config["repos"]), "a hook from elsewhere needs a network"
    (hook,) = (hook for repo in config["repos"] for hook in repo["hooks"] if hook["id"] == "nbstripout")
    command = ROOT / hook["entry"]
    if not command.exists():
        pytest.skip(f"no {command.name} in .venv")
    committed, executed = (nbformat.read(ROOT / "notebooks" / "05_chat.ipynb", as_version=4) for _ in range(2))
    executed.metadata["papermill"] = {"duration": 1.5}
    for cell in executed.cells:
        cell.metadata |= {"papermill": {"duration": 1.5}, "execution": {"iopub.execute_input": "now"}}
        if cell.cell_type == "code":
            cell |= {"execution_count": 1, "outputs": [nbformat.v4.new_output("stream", text="hello")]}
    nbformat.write(executed, tmp_path / "book.ipynb")
    subprocess.run([command, *hook["args"], tmp_path / "book.ipynb"], check=True)
    assert nbformat.read(tmp_path / "book.ipynb", as_version=4) == committed
