"""Form of the notebooks as they are committed, and of the profiles that feed them."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import yaml

from nbutils.core.notebooks import code_cells, notebook_path, parameters
from nbutils.core.settings import STEERING
from nbutils.core.stages import STAGES
from nbutils.pipeline.parameters import plan, read_profile
from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROFILES = sorted((ROOT / "params").rglob("*.yaml"))


def test_there_are_six_notebooks_in_order_and_profiles():
    assert [path.name for path in NOTEBOOKS] == [stage.file for stage in STAGES] and len(NOTEBOOKS) == 6
    assert len(PROFILES) > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_clean_and_a_story_of_short_cells_without_functions_or_installs(path: Path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in notebook["metadata"] and "papermill" not in notebook["metadata"]
    tags = [tag for cell in notebook["cells"] for tag in cell["metadata"].get("tags", [])]
    assert tags.count("parameters") == 1 and "injected-parameters" not in tags
    first = "".join(notebook["cells"][0]["source"])
    assert first.startswith("# ") and "\n> " in first and "| Reads | Writes | Runtime |" in first
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    cells = code_cells(path)
    assert 8 <= len(cells) <= 15
    for cell in cells:
        assert not cell["source"].lstrip().startswith(("!", "%pip"))
        kinds = {type(node) for node in ast.walk(ast.parse(cell["source"]))}
        assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_parameter_is_a_typed_literal_with_help_that_papermill_reads(path: Path):
    from papermill import inspect_notebook

    ours, theirs = parameters(path), inspect_notebook(str(path))
    assert set(ours) == set(theirs)
    for name, parameter in ours.items():
        assert parameter.help and theirs[name]["help"] == parameter.help, name
        assert ast.literal_eval(theirs[name]["default"]) == parameter.default, name
    assert theirs["run_dir"]["inferred_type_name"] == "str"


@pytest.mark.parametrize("stage", STAGES, ids=lambda s: s.name)
def test_the_cell_and_the_settings_name_the_same_parameters_and_its_defaults_hold(stage):
    settings = stage.settings_class()
    defaults = {name: p.default for name, p in parameters(notebook_path(stage)).items()}
    assert set(settings.model_fields) == set(defaults)
    settings.checked(defaults)
    for name, field in settings.model_fields.items():
        assert field.is_required() or field.default == defaults[name], f"{name} has another default elsewhere"
    assert STEERING in settings.model_fields["run_dir"].metadata


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_every_profile_fits_the_notebooks_and_papermill_alone_reads_the_same(profile: Path):
    """`papermill … -f` reads YAML 1.1; after the settings' checks the values must agree with ours."""
    assert read_profile(profile)
    theirs, planned = yaml.safe_load(profile.read_text()), plan(profile, []).stages
    assert [entry.stage for entry in planned] == list(STAGES)
    for entry in planned:
        values = {name: p.default for name, p in parameters(notebook_path(entry.stage)).items()}
        assert entry.stage.settings_class().checked(values | {n: v for n, v in theirs.items() if n in values}) == (
            entry.settings
        )


def test_shared_parameters_have_one_default_and_the_demo_profile_repeats_it():
    seen: dict[str, object] = {}
    for stage in STAGES:
        for name, parameter in parameters(notebook_path(stage)).items():
            assert seen.setdefault(name, parameter.default) == parameter.default, (stage.name, name)
    demo = {name: given.value for name, given in read_profile(ROOT / "params" / "demo.yaml").items()}
    assert demo == {name: seen[name] for name in demo} | {"interactive": False}
