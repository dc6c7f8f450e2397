"""What an image brings, what is installed into it and what is collected for it, with a real pip."""

import os
import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from nbutils.core.errors import UserError
from nbutils.core.stages import STAGES
from nbutils.kaggle import packages
from tests.conftest import ROOT
from tests.kaggle.made_packages import installed, wheel
from tests.kaggle.simulated import image


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
    monkeypatch.syspath_prepend(tmp_path)
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


def test_all_that_the_notebooks_need_is_collected_or_never_replaced():
    found, brought = set(packages.closure(packages.required())), set(packages.BROUGHT)
    assert {"plotly", "nbclient", "ipykernel", "psutil", "trl", "lm-eval"} <= found
    for stage in (*(stage.name for stage in STAGES), "all"):
        assert set(packages.needed(stage)) <= found | set(packages.NEWEST), stage
    assert not found & brought and {"torch", "transformers", "numpy"} <= brought


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
def live(tmp_path_factory):
    """Installs packages into an image that has `helper` 1.0, from a folder of made-up wheels; what is said of it."""
    folder = tmp_path_factory.mktemp("live")
    wheels, python = folder / "wheels", image(folder / "venv")
    wheels.mkdir()
    for line in ("helper 1.0", "helper 2.0", "easygoing 1.0 helper", "demanding 1.0 helper>=2", "numpy 9.0",
                 "greedy 1.0 numpy>=9"):  # fmt: skip
        wheel(wheels, *line.split())
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PIP_")}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PYTHONPATH": str(ROOT)}

    def run(*arguments):
        return subprocess.run([python, *arguments], capture_output=True, text=True, env=environment, check=True).stdout

    run("-m", "pip", "install", "-q", "--no-index", "--find-links", wheels, "helper==1.0")
    return lambda *lines: run("-c", INSTALL, wheels, *lines)


@pytest.mark.parametrize(
    "lines,said",
    [
        (["easygoing>=1", "numpy>=2"], r"installed easygoing >=1 nothing 1\.0 numpy >=2 \S+ kept$"),
        (["demanding"], r"installed demanding nothing 1\.0 helper a helper 1\.0 2\.0$"),
        (["greedy"], "^pip cannot install greedy .*Always use latest"),
    ],
)
def test_only_what_is_lacking_is_installed_a_helper_raised_where_it_must_be_and_never_numpy(live, lines, said):
    assert re.search(said, " ".join(live(*lines).split()))


def test_wheels_are_collected_with_what_they_need_but_not_with_what_the_image_has(tmp_path, monkeypatch):
    there, index, out = tmp_path / "there", tmp_path / "index", tmp_path / "out"
    index.mkdir()
    for name, *requires in [("newcomer", "torch", "helper", "other; extra == 'x'"), ("helper",)]:
        installed(there, name, "1.0", *requires)
        wheel(index, name, "1.0")
    monkeypatch.syspath_prepend(there)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    found = packages.collect_wheels(out, "3.12", ["newcomer"])
    assert found == [out / f"{name}-1.0-py3-none-any.whl" for name in ("helper", "newcomer")] == sorted(out.iterdir())
    installed(there, "nowhere", "3.0")
    with pytest.raises(UserError, match=r"for Python 3.12 .*nowhere==3.0"):
        packages.collect_wheels(out, "3.12", ["nowhere"])
