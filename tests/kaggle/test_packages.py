"""What an image brings, and what is installed into it, with a real pip."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import packaging
import pip
import pytest
from packaging.requirements import Requirement

from nbutils.core.errors import UserError
from nbutils.kaggle import packages
from tests.conftest import ROOT
from tests.kaggle.made_packages import installed, wheel


def test_the_first_cell_imports_nothing_that_may_have_to_be_installed():
    code = (
        "import sys, nbutils.kaggle.start\n"
        "others = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(*sorted(name for name in others if not name.startswith('_')))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["nbutils", "packaging"]


@pytest.mark.parametrize("version,words", [("4.57.0", ">=5.0.*Always use latest"), ("6.1.0", "<6.*update")])
def test_an_image_too_old_or_too_new_is_one_sentence(tmp_path, monkeypatch, version, words):
    installed(tmp_path, "transformers", version)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=rf"transformers is {version}.*{words}"):
        packages.lacking({"transformers": Requirement("transformers>=5.0")})


def test_what_is_there_is_kept_and_each_notebook_needs_its_own():
    found = packages.needed("all")
    assert not packages.lacking(found)
    rows = [line.split() for line in packages.install(found, [], internet=False, wheels=[]).splitlines()[1:]]
    assert rows and all(row[-1] == "kept" for row in rows)
    names = set(packages.needed("train"))
    assert {"torch", "trl", "chitchat-dataset"} <= names and not names & {"lm-eval", "jupyterlab", "papermill"}
    assert all("lm-eval" in packages.needed(stage) for stage in ("data", "evaluate", "all"))


INSTALL = """
import sys
from pathlib import Path
from packaging.requirements import Requirement
from nbutils.core.errors import UserError
from nbutils.kaggle import packages
needed = {each.name: each for each in map(Requirement, sys.argv[2:])}
try:
    print(packages.install(needed, packages.lacking(needed), internet=False, wheels=[Path(sys.argv[1])]))
except UserError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory) -> Callable[..., str]:
    """Runs code in an environment with `helper` 1.0, numpy and pip, given a folder of wheels; what it prints."""
    folder = tmp_path_factory.mktemp("live")
    wheels, parts = folder / "wheels", folder / "parts"
    wheels.mkdir()
    parts.mkdir()
    for package in (packaging, pip):
        (parts / package.__name__).symlink_to(Path(package.__file__).parent)
    (parts / "nbutils").symlink_to(ROOT / "nbutils")
    made = ["helper 1.0", "helper 2.0", "easygoing 1.0 helper", "demanding 1.0 helper>=2"]
    for line in [*made, "numpy 2.3.5", "numpy 9.0", "greedy 1.0 numpy>=9"]:
        wheel(wheels, *line.split())
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder / "venv")
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PIP_")}
    environment |= {"PYTHONPATH": str(parts), "PIP_CONFIG_FILE": os.devnull}

    def run(*arguments: object) -> str:
        command = [folder / "venv" / "bin" / "python", *map(str, arguments)]
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    run("-m", "pip", "install", "-q", "--no-index", "--find-links", wheels, "helper==1.0", "numpy==2.3.5")
    return lambda code, *lines: run("-c", code, wheels, *lines)


def helper(live: Callable[..., str]) -> str:
    return live("import helper; print(helper.VERSION)").strip()


def test_only_what_is_lacking_is_installed_and_helpers_stay(live):
    table = [line.split() for line in live(INSTALL, "easygoing>=1", "numpy>=2").splitlines()[1:]]
    assert table == [["easygoing", ">=1", "nothing", "1.0"], ["numpy", ">=2", "2.3.5", "kept"]]
    assert helper(live) == "1.0"


def test_a_helper_is_raised_where_a_newcomer_demands_it(live):
    table = [line.split() for line in live(INSTALL, "demanding").splitlines()[1:]]
    assert table == [["demanding", "nothing", "1.0"], ["helper", "a", "helper", "1.0", "2.0"]]
    assert helper(live) == "2.0"


def test_numpy_of_the_image_is_never_replaced(live):
    said = live(INSTALL, "greedy")
    assert "pip cannot install greedy" in said and "Always use latest" in said
