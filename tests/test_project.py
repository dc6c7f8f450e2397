"""The project's own files agree with one another, and carry nothing of the machine that they were written on."""

import re
import subprocess
import tomllib

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

from tests.conftest import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
CONDA_NAMES = {"torch": "pytorch"}  # where conda-forge calls a package otherwise
ENDS = ("conda-forge", ""), ("pip", ":")  # lines of environment.yml that are no package


def normal(requirement: str) -> str:
    """A distribution's name alone, as package indexes compare names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement).group()).lower()


PINS = {normal(line): line.partition("==")[2] for line in LOCK}
DEPENDENCIES = PYPROJECT["project"]["dependencies"] + PYPROJECT["project"]["optional-dependencies"]["dev"]


def ignored(path: str) -> bool:
    return subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT).returncode == 0


def committed_texts() -> list[tuple[str, str]]:
    """(path, text) of every text file that is, or would be, in a commit."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    texts = []
    for name in sorted(set(filter(None, names))):
        path = ROOT / name
        if path.is_file() and b"\0" not in path.read_bytes()[:8192]:
            texts.append((name, path.read_text(encoding="utf-8", errors="replace")))
    return texts


needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")


@needs_git
def test_what_a_run_or_a_tool_makes_is_ignored_and_code_is_not():
    assert all(map(ignored, ("runs/demo/run.json", ".venv/bin/python", "nbutils/core/__pycache__/x.pyc")))
    assert not [path for path in (ROOT / "nbutils").glob("*/__init__.py") if ignored(str(path.relative_to(ROOT)))]


FORBIDDEN = {
    # Put together from parts, so that this file does not contain what it forbids.
    "a package registry's host": re.compile(
        "py"
        + r"pi\.org|python"
        + r"hosted\.org|registry\.npm"
        + r"js\.org|deb\.debian"
        + r"\.org|anaconda"
        + r"\.(?:org|com)"
    ),
    "an absolute path of one machine": re.compile(
        r"(?<![\w./~-])/(?:" + "|".join(["work", "root", r"home/\w+", r"Users/\w+", "opt/(?:wheels|py" + "pi)"]) + r")/"
    ),
    "an access token": re.compile(
        r"\b(?:hf_[A-Za-z0-9]{30,}|KGAT_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{36}|AKIA[0-9A-Z]{16})\b"
    ),
}


@needs_git
@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_committed_file_names(what):
    texts = committed_texts()
    assert len(texts) > 10
    found = [f"{name}: {hit.group()!r}" for name, text in texts for hit in [FORBIDDEN[what].search(text)] if hit]
    assert not found


def test_the_forbidden_patterns_find_what_they_forbid():
    def hits(text: str) -> list[str]:
        return [what for what, pattern in FORBIDDEN.items() if pattern.search(text)]

    assert hits('"/' + 'work/main/x"') == ["an absolute path of one machine"] == hits("in /" + "root/.cache")
    assert hits("https://py" + "pi.org/simple") == ["a package registry's host"]
    assert hits("hf_" + "a" * 34) == ["an access token"]
    assert hits("/kaggle/working/runs, nbutils/work/x, ~/work/x") == []


# Dependencies


def test_the_lock_holds_exact_versions_for_every_system():
    assert LOCK[0] == "torch==2.13.0"
    for line in LOCK:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), f"not an exact, portable version: {line}"
        assert not re.match(r"nvidia|cuda|triton", line, re.IGNORECASE), f"belongs to one system's torch: {line}"
    assert len(PINS) == len(LOCK), "a package is pinned twice"
    assert "smallchat" not in PINS and {"pip", "setuptools"} <= PINS.keys()


@pytest.mark.parametrize("requirement", DEPENDENCIES)
def test_every_dependency_is_locked_within_its_bounds(requirement):
    assert normal(requirement) in PINS, f"{requirement} has no line in requirements.lock: run `make lock`"
    assert Requirement(requirement).specifier.contains(PINS[normal(requirement)])


def conda_lines() -> dict[str, tuple[str, str]]:
    """name -> (specifier, reason) out of environment.yml."""
    text = (ROOT / "environment.yml").read_text()
    lines = re.findall(r"^\s+- (-e|[A-Za-z0-9._-]+)([^#\n]*?)[ ]*(?:#[ ]*(.*))?$", text, re.MULTILINE)
    return {normal(n) if n != "-e" else n: (s.strip(), why) for n, s, why in lines if (n, s) not in ENDS}


def test_every_dependency_stands_in_the_conda_environment_with_a_reason():
    lines = conda_lines()
    for requirement in DEPENDENCIES:
        name = CONDA_NAMES.get(normal(requirement), normal(requirement))
        assert lines[name][0] == re.sub(r"^[A-Za-z0-9._-]+", "", requirement), (
            f"environment.yml disagrees on {requirement}"
        )
        assert len(lines[name][1]) > 10, f"environment.yml gives no reason for {name}"
    *names, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert len(names) + len(pip["pip"]) == len(lines)
    assert [name for name, (_, reason) in lines.items() if not reason] in ([], ["pip"])


def test_the_test_models_are_pinned():
    lines = (ROOT / "tests" / "requirements-no-deps.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins and all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9.]+", pin) for pin in pins)


# Commands and tools


def test_the_makefile_has_its_targets_each_explained():
    text = (ROOT / "Makefile").read_text()
    explained = set(re.findall(r"^# .+\n([a-z-]+):", text, re.MULTILINE))
    assert {"demo", "test", "soak", "lint", "bench", "lab", "docs", "lock", "clean", "help"} <= explained
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"  {target} " in listed for target in explained)


def test_every_file_that_the_makefile_needs_is_there():
    text = (ROOT / "Makefile").read_text()
    for name in set(re.findall(r"(?:tools|params)/\w+\.\w+", text)):
        assert (ROOT / name).exists(), f"Makefile names {name}"


def test_ci_can_be_run():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    last = workflow["jobs"]["test"]["steps"][-1]
    assert last["run"] == "make lint test"
    assert last["env"]["CI"] == "false", "../shared is not on GitHub: with CI=true its tests would fail, not skip"


def test_make_lab_stays_on_this_machine_and_keeps_its_token():
    told = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--ip=127.0.0.1" in told and "token" not in told.lower() and "password" not in told.lower()


def test_pre_commit_strips_notebooks_but_keeps_the_parameters_tag(tmp_path):
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert all(repo["repo"] == "local" for repo in config["repos"]), "a hook from elsewhere needs a network"
    (hook,) = (hook for repo in config["repos"] for hook in repo["hooks"] if hook["id"] == "nbstripout")
    made = {"papermill": {"duration": 1.5}, "execution": {"iopub.execute_input": "now"}}
    output = nbformat.v4.new_output("stream", text="hello")
    cell = nbformat.v4.new_code_cell("seed: int = 1", execution_count=1, outputs=[output])
    cell.metadata = {"tags": ["parameters"]} | made
    kernel = {"name": "python3", "display_name": "Python 3"}
    book = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel, "papermill": {"output_path": "x"}})
    nbformat.write(book, tmp_path / "book.ipynb")
    command = ROOT / hook["entry"]
    if not command.exists():
        pytest.skip(f"no {command.name} in .venv")
    subprocess.run([command, *hook["args"], tmp_path / "book.ipynb"], check=True)
    stripped = nbformat.read(tmp_path / "book.ipynb", as_version=4)
    (cell,) = stripped.cells
    assert (cell.metadata, cell.outputs, cell.execution_count) == ({"tags": ["parameters"]}, [], None)
    assert "papermill" not in stripped.metadata and stripped.metadata.kernelspec.name == "python3"
