"""The house: who may know what. Read from the syntax trees of `nbutils`; nothing is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from nbutils.core.run import key
from nbutils.core.run.key import code_file, code_hashes
from nbutils.core.stages import STAGES
from tests.conftest import ROOT

PACKAGE = ROOT / "nbutils"
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
NAMES = {stage.name for stage in STAGES}


def strings(tree: ast.AST) -> Iterator[ast.Constant]:
    """Every string in the code; docstrings are none."""
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            yield node


def imports(tree: ast.AST) -> set[str]:
    """Modules of `nbutils` that the code imports anywhere, those for type checkers alone left out."""
    only_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("nbutils.") for name in found if name.removeprefix("nbutils.") in MODULES}


# A fact has one owner

OTHERWISE = {
    "cli": {"chat"},  # the command
    "core.charts": {"data"},  # matplotlib's coordinates
    "core.history": {"train"},  # a kind of row in the log
    "core.training_log": {"data"},  # a part of a step's seconds
    "data": {"train"},  # a side of the data, and a split of a data set
    "evaluate.report": {"metrics"},  # a field of an answer
    "evaluate.score": {"metrics"},  # a field of an answer
    "kaggle.notebook_session": {"train"},  # a kind of row in the log, and a side of the data
    "metrics.remarks": {"data"},  # a part of a step's seconds
    "metrics.summary": {"data"},  # a field of settings.json
    "train.trainer": {"data"},  # a part of a step's seconds
    "train.worker": {"data"},  # fields of settings.json and of a checkpoint's identity
}
"""Modules or packages in which such a word means something else."""


def words() -> Iterator[tuple[str, str, str]]:
    """Module, place and value of every string in the code."""
    for name, tree in TREES.items():
        for node in strings(tree):
            yield name, f"{name}:{node.lineno} {node.value!r}", node.value


def test_a_stages_name_stands_in_its_own_package_and_in_the_list_of_stages_alone():
    assert not [
        place
        for name, place, word in words()
        if word in NAMES
        and name != "core.stages"
        and not name.startswith(f"{word}.")
        and word not in OTHERWISE.get(name, OTHERWISE.get(name.split(".")[0], ()))
    ]


def test_only_the_owner_of_the_run_folder_writes_a_checkpoints_name():
    assert not [place for name, place, word in words() if "step-" in word and not name.startswith("core.run.")]


# What a stage's result depends on

NEUTRAL = {
    "core.errors": "sentences",
    "core.fetched": "where a copy of a model or data set is; what it holds is hashed or pinned",
    "core.files": "paths, hashes, atomic writes",
    "core.hardware": "which devices there are; what follows from it is recorded",
    "core.jupyter": "whether anybody looks on",
    "core.run.checkpoints": "what a checkpoint is; resuming is tested bit for bit",
    "core.run.key": "which upstream files there are, by their hashes",
    "core.run.layout": "where files are",
    "core.run.pause": "asking for a pause",
    "core.run.record": "stage.json, versions and commit, which are recorded",
    "core.network": "whether the hub answers; what comes from there is hashed or pinned",
    "core.run.state": "states and changes",
    "core.settings": "parameters are part of the key themselves",
    "core.stages": "which stage is which",
    "core.text": "numbers as text, and what is blotted out",
    "core.torchrun": "starting and ending processes",
    "core.training_log": "names of a log's columns",
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
        "evaluate.run:take_samples",
    ),
    "chat": ("chat.session:play", "chat.session:ask"),
    "publish": ("publish.card:render_card", "publish.export:export", "publish.parity:check_parity"),
}
"""What each notebook calls to make its result, as `module:function`."""

SHOWS = ("display", "charts", "launch", "progress", "forecast", "preflight")
"""Last parts of names of modules that can't change a result: nothing declared may need them."""


def test_result_code_is_declared_whole():
    """From the functions that the notebooks call, every import, function-local ones included, is declared."""
    for stage in STAGES:
        declared = set(stage.code)
        for entry in ENTRIES[stage.name]:
            module, _, function = entry.partition(":")
            defined = {node.name for node in TREES[module].body if isinstance(node, ast.FunctionDef)}
            assert function in defined and module in declared, f"{stage.name}: {entry}"
        for name in declared:
            assert code_file(name).is_file(), f"{stage.name} declares {name}, which is not there"
            if name in TREES:
                missing = imports(TREES[name]) - declared - NEUTRAL.keys()
                assert not missing, f"{stage.name} declares {name}, which imports {sorted(missing)}"
                beside = {
                    path.name: path
                    for path in code_file(name).parent.iterdir()
                    if path.is_file() and path.suffix != ".py"
                }
                used = {node.value for node in strings(TREES[name])} & beside.keys()
                lacking = {str(beside[file].relative_to(PACKAGE)) for file in used} - declared
                assert not lacking, f"{stage.name} declares {name}, which reads {sorted(lacking)}"


def test_result_code_shows_nothing():
    for stage in STAGES:
        assert not [name for name in stage.code if name.rpartition(".")[2] in SHOWS], stage.name


def test_a_change_in_declared_code_changes_its_hash_and_words_change_none(tmp_path, monkeypatch):
    """Of all declared modules, each in a copy of the package; `test_what_a_change_reruns` says whose they are."""
    names = {name for stage in STAGES for name in stage.code} & TREES.keys()
    declared = replace(STAGES[0], code=tuple(sorted(names)))
    before = code_hashes(declared)
    monkeypatch.setattr(key, "PACKAGE", tmp_path)
    for added, changed in (('\n# a remark\n"""More words."""\n', set()), ("\nONE_MORE = 1\n", names)):
        for name in names:
            copy = tmp_path / MODULES[name].relative_to(PACKAGE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(MODULES[name].read_text() + added)
        after = code_hashes(declared)
        assert {name for name in names if after[name] != before[name]} == changed


CHANGED = {
    "core.errors": set(),
    "core.charts": set(),
    "core.run.stage": set(),
    "core.torchrun": set(),
    "train.run": set(),
    "train.preflight": set(),
    "train.loss": {"train"},
    "train.batches": {"train"},
    "train.trainer": {"train"},
    "core.chatml": {"data", "train", "evaluate", "chat", "publish"},
    "evaluate.score": {"evaluate"},
    "evaluate.display": set(),
    "data.fates": {"data"},
    "data.display": set(),
    "metrics.remarks": {"metrics"},
    "metrics.display": set(),
    "chat.session": {"chat"},
    "chat.widget": set(),
    "publish.export": {"publish"},
}
"""Module and the stages that its change makes stale. By hand: the lists above could both be wrong in the same way."""


@pytest.mark.parametrize("name", CHANGED)
def test_what_a_change_reruns(name):
    assert name in MODULES
    assert {stage.name for stage in STAGES if name in stage.code} == CHANGED[name]


def test_the_page_on_architecture_names_files_that_are_there():
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:core|data|train|metrics|evaluate|chat|publish|pipeline|kaggle)/[\w./]+)`", page))
    assert len(named) > 25
    assert not [name for name in named if not any((PACKAGE / f"{name}{ending}").exists() for ending in ("", ".py"))]
