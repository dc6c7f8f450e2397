"""Form of the notebooks as they are committed, and of the profiles that feed them."""

import ast
import json

import pytest
import yaml
from papermill import inspect_notebook

from nbutils.core.notebooks import SWEEP, code_cells, notebook_path, notebooks_folder, parameters
from nbutils.core.stages import STAGES
from nbutils.pipeline.parameters import plan, read_profile, settings_of
from nbutils.sweep.settings import SweepSettings
from tests.conftest import ROOT

PROFILES = sorted((ROOT / "params").rglob("*.yaml"))
BOOKS = {notebook_path(stage): stage.settings_class() for stage in STAGES}
BOOKS[notebooks_folder() / SWEEP] = SweepSettings
of_each_notebook = pytest.mark.parametrize("path", BOOKS)


def test_there_are_six_notebooks_in_order_that_of_the_sweep_and_profiles():
    assert sorted((ROOT / "notebooks").glob("*.ipynb")) == [*BOOKS] and len(STAGES) == 6
    assert PROFILES


@of_each_notebook
def test_committed_clean_and_a_story_of_short_cells_without_functions_or_installs(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert not {"widgets", "papermill"} & notebook["metadata"].keys()
    tags = [tag for cell in notebook["cells"] for tag in cell["metadata"].get("tags", [])]
    assert "injected-parameters" not in tags
    first = "".join(notebook["cells"][0]["source"])
    assert first.startswith("# ") and "\n> " in first and "| Reads | Writes | Runtime |" in first
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"])
    cells = code_cells(path)
    assert 8 <= len(cells) <= 15
    for cell in cells:
        assert not cell["source"].lstrip().startswith(("!", "%pip"))
        kinds = {type(node) for node in ast.walk(ast.parse(cell["source"]))}
        assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda}


@of_each_notebook
def test_every_parameter_is_a_typed_literal_with_help_that_papermill_reads(path):
    ours, theirs = parameters(path), inspect_notebook(str(path))
    assert all(parameter.help for parameter in ours.values())
    assert {name: (parameter.help, parameter.default) for name, parameter in ours.items()} == {
        name: (found["help"], ast.literal_eval(found["default"])) for name, found in theirs.items()
    }
    assert theirs["run_dir"]["inferred_type_name"] == "str"


@of_each_notebook
def test_the_cell_and_the_settings_name_the_same_parameters_and_its_defaults_hold(path):
    fields = BOOKS[path].model_fields
    defaults = {name: parameter.default for name, parameter in parameters(path).items()}
    assert set(fields) == set(defaults) and BOOKS[path].checked(defaults)
    other = [name for name, field in fields.items() if not (field.is_required() or field.default == defaults[name])]
    assert other == [], "they have another default elsewhere"


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_fits_the_notebooks_and_papermill_alone_reads_the_same(profile):
    """`papermill … -f` reads YAML 1.1; after the settings' checks the values must agree with ours."""
    theirs = yaml.safe_load(profile.read_text())
    planned = [(entry.stage, entry.settings) for entry in plan(profile, []).stages]
    assert theirs and planned == [(stage, settings_of(stage, theirs)) for stage in STAGES]


def test_shared_parameters_have_one_default_and_the_demo_profile_repeats_it():
    seen = {}
    for stage in STAGES:
        for name, parameter in parameters(notebook_path(stage)).items():
            assert seen.setdefault(name, parameter.default) == parameter.default, (stage.name, name)
    demo = {name: given.value for name, given in read_profile(ROOT / "params" / "demo.yaml").items()}
    assert demo == {name: seen[name] for name in demo} | {"interactive": False}
