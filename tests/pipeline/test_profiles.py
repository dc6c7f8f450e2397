"""Every committed profile fits every notebook, and reads the same with papermill's own YAML reader."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nbutils.core.notebooks import notebook_path, parameters
from nbutils.core.stages import stages
from nbutils.pipeline.parameters import OF_BUNDLES, plan
from nbutils.pipeline.profile import read_profile

ROOT = Path(__file__).resolve().parents[2]
PROFILES = sorted((ROOT / "params").rglob("*.y*ml"))


def test_there_are_profiles():
    assert PROFILES


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_fits_every_notebook(path):
    planned = plan(path, [])
    known = {name for entry in planned.stages for name in parameters(notebook_path(entry.stage))}
    assert set(read_profile(path)) <= known | set(OF_BUNDLES)
    assert planned.stages


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_papermill_alone_gives_a_notebook_the_same_settings(path):
    """`papermill … -f` reads YAML 1.1; after the settings' checks the values must agree with ours."""
    theirs = yaml.safe_load(path.read_text()) or {}
    for entry in plan(path, []).stages:
        cell = {name: p.default for name, p in parameters(notebook_path(entry.stage)).items()}
        values = cell | {name: value for name, value in theirs.items() if name in cell}
        fields = entry.stage.settings_class().model_fields
        checked = entry.stage.settings_class().checked({n: v for n, v in values.items() if n in fields})
        assert checked == entry.settings


@pytest.mark.parametrize("stage", [s for s in stages() if notebook_path(s).is_file()], ids=lambda stage: stage.name)
def test_a_notebooks_parameters_are_its_settings(stage):
    assert set(parameters(notebook_path(stage))) == set(stage.settings_class().model_fields)
