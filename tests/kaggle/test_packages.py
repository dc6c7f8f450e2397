"""What an image brings, and what is installed into it, with a real pip."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

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


@pytest.mark.parametrize("version,words", [("4.57.0", [">=5.0", "Always use latest"]), ("6.1.0", ["6", "update"])])
def test_an_image_too_old_or_too_new_is_one_sentence(tmp_path, monkeypatch, version, words):
    installed(tmp_path, "transformers", version)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError) as raised:
        packages.lacking({"transformers": Requirement("transformers>=5.0")})
    assert all(word in str(raised.value) for word in ["transformers", version, *words])


def test_what_is_there_is_kept_and_each_notebook_needs_its_own():
    for stage in ("data", "train", "evaluate", "all"):
        found = packages.needed(stage)
        assert not packages.lacking(found)
        rows = [line.split() for line in packages.install(found, [], internet=False, wheels=[]).splitlines()[1:]]
        assert rows and all(row[-1] == "kept" for row in rows)
    names = set(packages.needed("train"))
    assert {"torch", "trl", "chitchat-dataset"} <= names and not names & {"lm-eval", "jupyterlab", "papermill"}


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
def live(tmp_path_factory) -> tuple[Path, Path]:
    """An environment with `helper` 1.0 and what pip needs, and a folder of wheels."""
    folder = tmp_path_factory.mktemp("live")
    venv.EnvBuilder(with_pip=True, symlinks=True).create(folder / "venv")
    wheels = folder / "wheels"
    wheels.mkdir()
    for name, version, requires in [
        ("helper", "1.0", ""),
        ("helper", "2.0", ""),
        ("easygoing", "1.0", "helper"),
        ("demanding", "1.0", "helper>=2"),
        ("numpy", "2.3.5", ""),
        ("numpy", "9.0", ""),
        ("greedy", "1.0", "numpy>=9"),
    ]:
        wheel(wheels, name, version, requires)
    python = folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q", "--no-index", "--find-links", wheels]
    subprocess.run([*pip, "helper==1.0", "numpy==2.3.5"], check=True)
    return python, wheels


def install(live: tuple[Path, Path], tmp_path: Path, *lines: str) -> str:
    """The table, or the sentence, of an installation in the live environment."""
    python, wheels = live
    import packaging

    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "packaging").symlink_to(Path(packaging.__file__).parent)
    (parts / "nbutils").symlink_to(ROOT / "nbutils")
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PIP_")} | {"PYTHONPATH": str(parts)}
    environment["PIP_CONFIG_FILE"] = os.devnull
    ran = subprocess.run(
        [python, "-c", INSTALL, wheels, *lines], capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_only_what_is_lacking_is_installed_and_helpers_stay(live, tmp_path):
    said = install(live, tmp_path, "easygoing>=1", "numpy>=2")
    assert [line.split() for line in said.splitlines()[1:]] == [
        ["easygoing", ">=1", "nothing", "1.0"],
        ["numpy", ">=2", "2.3.5", "kept"],
    ]
    version = subprocess.run([live[0], "-c", "import helper; print(helper.VERSION)"], capture_output=True, text=True)
    assert version.stdout.strip() == "1.0"


def test_a_helper_is_raised_where_a_newcomer_demands_it(live, tmp_path):
    said = install(live, tmp_path, "demanding")
    assert [line.split() for line in said.splitlines()[1:]] == [
        ["demanding", "nothing", "1.0"],
        ["helper", "a", "helper", "1.0", "2.0"],
    ]
    version = subprocess.run([live[0], "-c", "import helper; print(helper.VERSION)"], capture_output=True, text=True)
    assert version.stdout.strip() == "2.0"


def test_numpy_of_the_image_is_never_replaced(live, tmp_path):
    said = install(live, tmp_path, "greedy")
    assert "pip cannot install greedy" in said and "Always use latest" in said
