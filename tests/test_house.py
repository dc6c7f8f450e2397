"""The house: who may know what. Read from the syntax trees of `nbutils`; nothing is imported."""

import ast
import re
import shutil

import pytest

from nbutils.core.run import key
from nbutils.core.run.key import code_file, code_hashes
from nbutils.core.stages import STAGES
from tests.conftest import ROOT

PACKAGE = ROOT / "nbutils"
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
NAMES = {stage.name for stage in STAGES}


def strings(name):
    """Every string in a module's code; docstrings are none."""
    nodes = {*ast.walk(TREES[name])}
    nodes -= {node.value for node in nodes if isinstance(node, ast.Expr)}
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def imported(nodes):
    """What import statements among the nodes name, as `module` and as `module.name`."""
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def imports(name):
    """Modules of `nbutils` that a module imports anywhere, those for type checkers alone left out."""
    nodes = {*ast.walk(TREES[name])}
    for node in [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]:
        nodes -= {*ast.walk(node)}
    return {name.removeprefix("nbutils.") for name in imported(nodes)} & MODULES.keys()


ABSENT = {"kaggle", "kagglesdk", "kaggle_secrets", "psutil", "xllamacpp"}
SLOW = {"torch", "transformers", "trl", "datasets", "lm_eval", "papermill", "accelerate"}
"""What may be imported inside a function: packages that a machine may lack, and those that take seconds."""


@pytest.mark.parametrize("name", MODULES)
def test_other_imports_stand_at_the_top(name):
    inside = {node for each in ast.walk(TREES[name]) if isinstance(each, ast.FunctionDef) for node in ast.walk(each)}
    allowed = ABSENT | SLOW | {"nbutils"}  # ours may import torch
    assert {module.partition(".")[0] for module in imported(inside)} <= allowed


# A fact has one owner

OTHERWISE = {
    "chat.llama": {"data"},  # a field of an answer of llama.cpp
    "cli": {"chat"},  # the command
    "core.charts": {"data"},  # matplotlib's coordinates
    "core.history": {"train"},  # a kind of row in the log
    "core.origin.index": {"train"},  # a side of the data
    "core.training_log": {"data"},  # a part of a step's seconds
    "data": {"train"},  # a side of the data, and a split of a data set
    "evaluate.report": {"metrics"},  # a field of an answer
    "evaluate.score": {"metrics"},  # a field of an answer
    "kaggle.notebook_session": {"train"},  # a kind of row in the log, and a side of the data
    "metrics.remarks": {"data"},  # a part of a step's seconds
    "metrics.summary": {"data"},  # a field of settings.json
    "publish.page.wllama": {"data"},  # a filter of tarfile
    "train.trainer": {"data"},  # a part of a step's seconds
    "train.worker": {"data"},  # fields of settings.json and of a checkpoint's identity
}
"""Modules or packages in which such a word means something else."""


def test_a_stages_name_stands_in_its_own_package_and_in_the_list_of_stages_alone():
    for name in MODULES.keys() - {"core.stages"}:
        own = {*OTHERWISE.get(name, OTHERWISE.get(name.split(".")[0], ())), name.split(".")[0]}
        assert not strings(name) & (NAMES - own), name


def test_only_the_owner_of_the_run_folder_writes_a_checkpoints_name():
    for name in MODULES:
        assert name.startswith("core.run.") or not [word for word in strings(name) if "step-" in word], name


# What a stage's result depends on

NEUTRAL = {
    "core.errors",  # sentences
    "core.fetched",  # where a copy of a model or data set is; what it holds is hashed or pinned
    "core.files",  # paths, hashes, atomic writes
    "core.hardware",  # which devices there are; what follows from it is recorded
    "core.jupyter",  # whether anybody looks on
    "core.run.checkpoints",  # what a checkpoint is; resuming is tested bit for bit
    "core.run.key",  # which upstream files there are, by their hashes
    "core.run.layout",  # where files are
    "core.run.pause",  # asking for a pause
    "core.run.record",  # stage.json, versions and commit, which are recorded
    "core.network",  # whether the hub answers; what comes from there is hashed or pinned
    "core.run.state",  # states and changes
    "core.settings",  # parameters are part of the key themselves
    "core.stages",  # which stage is which
    "core.text",  # numbers as text, and what is blotted out
    "core.torchrun",  # starting and ending processes
    "core.training_log",  # names of a log's columns
}
"""Modules that declared code may import although no bit of a result depends on them, each with the reason."""

ENTRIES = {
    "data": (
        "data.filter:make_tokenizer",
        "data.contamination:index_tasks",
        "data.filter:filter_sources",
        "data.summary:write_summary",
    ),
    "train": ("train.worker:main",),
    "metrics": ("metrics.summary:summarise", "metrics.summary:differences"),
    "evaluate": (
        "evaluate.run:prepare",
        "evaluate.run:score_all",
        "evaluate.run:compare",
        "evaluate.run:curve",
        "evaluate.run:measure_behaviour",
        "evaluate.run:measure_memorised",
        "evaluate.run:take_samples",
    ),
    "chat": ("chat.session:play", "chat.session:ask"),
    "publish": (
        "publish.facts:read_facts",
        "publish.card:render_card",
        "publish.export:export",
        "publish.parity:check_parity",
        "publish.page.make:make_page",
    ),
}
"""What each notebook calls to make its result, as `module:function`."""


def test_result_code_is_declared_whole_and_shows_nothing():
    """From the functions that the notebooks call, every import, function-local ones included, is declared."""
    for stage in STAGES:
        declared = set(stage.code)
        for entry in ENTRIES[stage.name]:
            module, _, function = entry.partition(":")
            assert f"\ndef {function}(" in MODULES[module].read_text() and module in declared, entry
        assert not [name for name in declared if name.endswith((".display", ".charts", ".preflight"))]
        for name in declared & MODULES.keys():
            missing = imports(name) - declared - NEUTRAL
            assert not missing, f"{stage.name} declares {name}, which imports {sorted(missing)}"
            beside = {path.name: str(path.relative_to(PACKAGE)) for path in MODULES[name].parent.glob("*.*")}
            read = {beside[word] for word in strings(name) if word in beside and not word.endswith(".py")}
            assert read <= declared, f"{stage.name} declares {name}, which reads {sorted(read)}"


def test_a_change_in_declared_code_changes_its_hash_and_words_change_none(tmp_path, monkeypatch):
    """In a copy of the package; `test_what_a_change_reruns` says whose code a module is."""
    before = code_hashes(STAGES[0])
    monkeypatch.setattr(key, "PACKAGE", shutil.copytree(PACKAGE, tmp_path / "nbutils"))
    for added, changed in (('\n# a remark\n"""More words."""\n', set()), ("\nONE_MORE = 1\n", {"data.fates"})):
        code_file("data.fates").write_text(MODULES["data.fates"].read_text() + added)
        assert {name for name, found in code_hashes(STAGES[0]).items() if found != before[name]} == changed


CHANGED = {
    "core.errors": set(),
    "core.run.stage": set(),
    "core.torchrun": set(),
    "train.run": set(),
    "train.loss": {"train"},
    "train.batches": {"train"},
    "train.trainer": {"train"},
    "core.chatml": {"data", "train", "evaluate", "chat", "publish"},
    "evaluate.score": {"evaluate"},
    "data.fates": {"data"},
    "metrics.remarks": {"metrics"},
    "chat.session": {"chat"},
    "chat.widget": set(),
    "publish.page.make": {"publish"},
    "publish.export": {"publish"},
}
"""Module and the stages that its change makes stale. By hand: the lists above could both be wrong in the same way."""


@pytest.mark.parametrize("name", CHANGED)
def test_what_a_change_reruns(name):
    assert name in MODULES
    assert {stage.name for stage in STAGES if name in stage.code} == CHANGED[name]


def test_the_page_on_architecture_names_files_that_are_there():
    page = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`((?:core|data|train|metrics|evaluate|chat|publish|pipeline|kaggle)/[\w./]+)`", page))
    assert len(named) > 25
    assert not [name for name in named if not any((PACKAGE / f"{name}{ending}").exists() for ending in ("", ".py"))]
