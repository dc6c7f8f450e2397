"""A key changes with what a result depends on, and with nothing else; checked on the real notebooks and modules."""

from __future__ import annotations

import modulefinder
import re
import shutil
from pathlib import Path

import pytest

from nbutils.core import cachekey
from nbutils.core.cachekey import module_hashes, normalised, reached_modules
from nbutils.core.notebooks import code_cells, notebook_path, stages

ROOT = Path(__file__).resolve().parents[2]


def test_comments_docstrings_and_layout_do_not_count():
    plain = "def f(x):\n    return x + 1\n"
    dressed = '"""Module."""\n# why\ndef f(x):\n    """Adds one."""\n\n    return (x\n            + 1)  # here\n'
    assert normalised(plain) == normalised(dressed)
    assert normalised(plain) != normalised(plain.replace("1", "2"))


def test_magics_are_code_and_comments_beside_them_are_not():
    assert normalised("%matplotlib inline\nx = 1") == normalised("# show\n%matplotlib inline\nx = 1  # one")
    assert normalised("%matplotlib inline\nx = 1") != normalised("%matplotlib widget\nx = 1")
    assert normalised("x = (7\n   % 2)") != normalised("x = (7\n   % 3)")


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A small `nbutils` whose modules may be changed."""
    files = {
        "__init__.py": "",
        "core/__init__.py": "",
        "core/shared.py": "VALUE = 1\n",
        "first/__init__.py": "",
        "first/work.py": "from nbutils.core import shared\nfrom . import helper\n",
        "first/helper.py": "from ..core.shared import VALUE\nTEMPLATE = 'page.jinja'\n",
        "first/display.py": "import nbutils.first.only_for_display\n",
        "first/only_for_display.py": "",
        "first/page.jinja": "{# why #}hello",
        "first/unused.jinja": "",
        "second/__init__.py": "",
        "second/worker.py": "def f():\n    import nbutils.core.shared\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cachekey, "PACKAGE", tmp_path)
    return tmp_path


def test_modules_are_followed_through_every_kind_of_import(package):
    first = reached_modules(["from nbutils.first.work import anything\nfrom nbutils.first import display"])
    assert set(first) == {
        *("nbutils", "nbutils.core", "nbutils.core.shared", "nbutils.first"),
        *("nbutils.first.work", "nbutils.first.helper", "nbutils.first/page.jinja"),
    }
    second = reached_modules(["subprocess.run([python, '-m', 'nbutils.second.worker'])"])
    assert set(second) == {"nbutils", "nbutils.core", "nbutils.core.shared", "nbutils.second", "nbutils.second.worker"}


def test_a_template_counts_and_its_comment_does_not(package):
    cells = ["import nbutils.first.work"]
    before = module_hashes(cells)
    (package / "first/page.jinja").write_text("{# another reason #}hello")
    assert module_hashes(cells) == before
    (package / "first/page.jinja").write_text("{# another reason #}good-bye")
    assert {name for name in before if module_hashes(cells)[name] != before[name]} == {"nbutils.first/page.jinja"}


PRESENT = [stage for stage in stages() if notebook_path(stage).is_file()]


def cells_of(stage) -> list[str]:
    return [cell["source"] for cell in code_cells(notebook_path(stage)) if "parameters" not in cell["tags"]]


def found_by_bytecode(sources: list[str], folder: Path) -> set[str]:
    """What Python's own ModuleFinder reaches, modules started with `-m` included, display modules cut off."""
    waiting = {"notebook": "\n".join(re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE) for source in sources)}
    reached: set[str] = set()
    while waiting:
        _, source = waiting.popitem()
        script = folder / "script.py"
        script.write_text(source)
        every = [
            ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "nbutils").rglob("display.py")
        ]
        finder = modulefinder.ModuleFinder(path=[str(ROOT)], excludes=every)
        finder.run_script(str(script))
        files = {name: Path(module.__file__) for name, module in finder.modules.items() if module.__file__}
        new = {name for name in files if name.split(".")[0] == "nbutils"} - reached
        reached |= new
        for text in [source, *(files[name].read_text() for name in new)]:
            for name in re.findall(r"[\"'](nbutils(?:\.\w+)+)[\"']", text):
                if name not in reached and (ROOT / (name.replace(".", "/") + ".py")).is_file():
                    waiting[name] = f"import {name}"
    return reached


@pytest.mark.parametrize("stage", PRESENT, ids=lambda stage: stage.name)
def test_real_notebooks_reach_what_python_itself_would_import(stage, tmp_path):
    ours = {name for name in reached_modules(cells_of(stage)) if "/" not in name}
    assert ours == found_by_bytecode(cells_of(stage), tmp_path)
    assert f"nbutils.{stage.name}.settings" in ours
    others = {other.name for other in stages()} - {stage.name}
    assert not {name for name in ours if name.split(".")[1:2] and name.split(".")[1] in others}


def test_a_change_in_any_real_module_changes_exactly_the_stages_that_reach_it(tmp_path, monkeypatch):
    """For every module: a comment and a docstring change no key, a statement changes those of the stages on it."""
    copy = tmp_path / "nbutils"
    shutil.copytree(ROOT / "nbutils", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cachekey, "PACKAGE", copy)
    cells = {stage.name: cells_of(stage) for stage in PRESENT}
    reached = {name: {path.resolve() for path in reached_modules(sources).values()} for name, sources in cells.items()}
    before = {name: module_hashes(sources) for name, sources in cells.items()}
    modules = sorted(copy.rglob("*.py"))
    assert len(modules) > 30
    for path in modules:
        text = path.read_text()
        try:
            path.write_text(text + "\n# a remark\n")
            assert {name: module_hashes(sources) for name, sources in cells.items()} == before, path
            path.write_text(text + "\nONE_MORE = 1\n")
            after = {name: module_hashes(sources) for name, sources in cells.items()}
            changed = {name for name in cells if after[name] != before[name]}
            assert changed == {name for name in cells if path.resolve() in reached[name]}, path
        finally:
            path.write_text(text)
